"""Many runs: in processes side by side, or by a launcher of Hydra's. Each keeps its folder, as a run alone does."""
