"""GGUF files for llama.cpp and Ollama, each proven there."""
