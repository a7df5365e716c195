"""`megatron-ko data preprocess` under the name and with the options that Megatron users type.

    python tools/preprocess_data.py --input corpus.jsonl --json-keys text --tokenizer-type SentencePieceTokenizer \\
        --tokenizer-model tokenizer/tokenizer.model --output-prefix data/corpus --append-eod --workers 8
"""

import sys

from megatron_ko.cli.data_preprocess import run_and_report
from megatron_ko.cli.main import main, run
from megatron_ko.cli.megatron_names import has_own_names, preprocess_options

if __name__ == "__main__":
    if has_own_names(sys.argv[1:]):
        sys.argv[1:1] = ["data", "preprocess"]
        main()
    else:
        run(lambda: run_and_report(preprocess_options(sys.argv[1:])))
