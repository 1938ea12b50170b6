"""Files to parameter trees and back: Hugging Face, GGUF, peft, and small trees; downloads."""
