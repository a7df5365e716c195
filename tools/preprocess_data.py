"""`megatron-ko data preprocess` under the name that Megatron users type."""

import sys

from megatron_ko.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["data", "preprocess"]
    main()
