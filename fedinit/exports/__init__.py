"""Trained models in the formats of the programs that use them: a folder with weights, what they take, and a card."""

# {--format: its class}. Imported when it is asked for.
FORMATS: dict[str, str] = {
    "merged": "fedinit.exports.merged:Merged",
    "onnx": "fedinit.exports.onnx_file:OnnxFile",
    "peft": "fedinit.exports.peft_adapter:PeftAdapter",
    "timm": "fedinit.exports.timm_folder:TimmFolder",
}
