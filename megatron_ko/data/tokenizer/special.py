"""Special tokens: the same six, with the same ids, in every tokenizer that is trained here."""

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
# ChatML borders. Reserved from the start, so that fine-tuning needs no new rows in the embedding.
CHAT_START, CHAT_END = "<|im_start|>", "<|im_end|>"

# Position in this tuple = token id.
SPECIAL_TOKENS = (UNKNOWN, BEGIN, END, PAD, CHAT_START, CHAT_END)

# What ends a document in the training data (Megatron calls it EOD).
END_OF_DOCUMENT = END
