"""`megatron-ko tokenizer train` under the name that Megatron users type."""

import sys

from megatron_ko.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["tokenizer", "train"]
    main()
