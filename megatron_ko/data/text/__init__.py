"""Reading and writing documents: files in many formats, folders, pipes, the Hugging Face hub."""
