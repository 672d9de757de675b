"""What a run leaves and shows: its folder, observers, tables, exports."""
