"""`megatron-ko tokenizer train` under the name and with the options that Megatron users type.

    python tools/train_tokenizer.py --input corpus.jsonl --tokenizer-type SentencePieceTokenizer --vocab-size 16000 \\
        --output-prefix tokenizer
"""

import sys

from megatron_ko.cli.main import main, run
from megatron_ko.cli.megatron_names import has_own_names, training_words

if __name__ == "__main__":
    if has_own_names(sys.argv[1:]):
        sys.argv[1:1] = ["tokenizer", "train"]
    else:
        run(lambda: sys.argv.__setitem__(slice(1, None), training_words(sys.argv[1:])))
    main()
