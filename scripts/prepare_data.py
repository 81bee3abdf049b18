#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tokenises data for prulong with a model's own Hugging Face tokenizer.

  prepare_data.py text   --tokenizer MODEL_DIR --out DIR [--format tokens|mds] [--split file|block|line] [--field text] INPUT...
      UTF-8 text, JSON lines, or folders of both, become a token folder, or MosaicML MDS shards.
  prepare_data.py recall --tokenizer MODEL_DIR --out DIR
      Prose, names and codes become a recall kit: the pieces from which prulong composes synthetic long-range recall.

Both write into a temporary folder that is renamed at the end, and leave a folder that already holds the same data alone.
With --overwrite another one gives way, but only a folder that this program wrote and nobody added to, and never one that
holds an input.

INPUT
  *.jsonl, *.ndjson, *.json (in any case) are JSON lines: an object a line, of which --field is the text. Other files are
  plain text; *.gz and the like are refused. Of a folder, *.txt and the JSON lines are read, in sub-folders too; all else
  in it is named on standard error. Text is UTF-8, with or without a byte order mark.
  A line ends with a newline (\\n) and with nothing else; in plain text a carriage return before it is dropped, so \\r\\n is
  read as \\n. Other line and page ends of Unicode (U+2028, U+0085, form feed, ...) are characters of the text. A block
  ends with a line of nothing but spaces and tabs. Documents of white space alone are none; newlines around a document
  are not part of it.

TOKEN FOLDER (--format tokens; a source of type tokens)
  tokens.npy     [tokens] uint16, or uint32 for vocabularies beyond 65,536
  documents.npy  [documents + 1] int64: where each document starts in tokens.npy, and the token count at the end
  data.json      format "prulong-tokens", version, tokenizer {name, sha256}, vocab_size (one past the tokenizer's largest
                 id), largest_token (the largest id that occurs: what a model must have a row for), tokens, documents,
                 inputs (options and source files), sha256 of both arrays
MDS SHARDS (--format mds; a source of type mds, and what ProLong's and MosaicML's tools read)
  index.json, shard.*.mds   columns input_ids (uint16 or uint32), indices ([start, end) of each document of the sample),
                 length; samples of --sample-tokens tokens, of which the last one is shorter
  data.json      as above, format "prulong-mds"
RECALL KIT
  tokens.npy     [tokens] uint16 or uint32: every piece of text, one after another
  offsets.npy    [pieces + 1] int64: where each piece starts
  kit.json       format "prulong-recall-kit", version, tokenizer, vocab_size, largest_token, tokens, pieces, inputs, sha256,
                 and
    prefix       the tokens that the tokenizer puts before a text (none, or the beginning-of-text token)
    templates    task -> the tokens of its fixed parts (the table TEMPLATES of scripts/preparation/recall.py)
    lists        split (train, eval) -> list -> [first piece, number of pieces]. Lists: prose (sentences in order),
                 adjectives, nouns, codes (5 digits), passkeys (7), labels (2). No piece is in both splits.
"""

import argparse
import signal
import sys
from pathlib import Path

try:
    from preparation.files import DataError, printable
    from preparation.recall import prepare_recall
    from preparation.text import prepare_text
except ModuleNotFoundError as missing:
    sys.exit(f"prepare_data: this Python has no module {missing.name}: run it with .venv/bin/python, which "
             "scripts/setup.sh makes")

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder expected, an empty name found")
    return Path(text)


def positive(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError(f"1 to {(1 << 31) - 1} expected, {text} found")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = commands.add_parser("text", help="text or JSON lines to a token folder or MDS shards")
    text.add_argument("inputs", type=Path, nargs="+", metavar="INPUT",
                      help="a UTF-8 text file, a file of JSON lines, or a folder of both")
    text.add_argument("--split", choices=("file", "block", "line"), default="file",
                      help="what one document is: a file, a block between blank lines, or a line (default: %(default)s)")
    text.add_argument("--field", default="text", help="which field of a JSON line is its text (default: %(default)s)")
    text.add_argument("--format", choices=("tokens", "mds"), default="tokens",
                      help="tokens: a token folder; mds: MosaicML MDS shards (default: %(default)s)")
    text.add_argument("--sample-tokens", type=positive, default=65536, metavar="N",
                      help="mds: tokens of a sample; best train.seq_len or a part of it (default: %(default)s)")
    text.set_defaults(run=prepare_text)
    recall = commands.add_parser("recall", help="prose, names and codes to a recall kit")
    recall.add_argument("--train-prose", type=Path, default=ASSETS / "prose" / "train.txt", metavar="FILE",
                        help="prose of training samples (default: assets/prose/train.txt)")
    recall.add_argument("--eval-prose", type=Path, default=ASSETS / "prose" / "eval.txt", metavar="FILE",
                        help="prose of evaluation samples (default: assets/prose/eval.txt)")
    recall.add_argument("--words", type=Path, default=ASSETS / "words", metavar="DIR",
                        help="folder of {adjectives,nouns}.{train,eval}.txt (default: assets/words)")
    recall.set_defaults(run=prepare_recall)
    for command in (text, recall):
        command.add_argument("--tokenizer", type=folder, required=True, metavar="MODEL_DIR",
                             help="a Hugging Face model folder (its tokenizer.json is read)")
        command.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder to write")
        command.add_argument("--overwrite", action="store_true", help="replace a folder that this program wrote and that holds other data")
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except DataError as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
    except KeyboardInterrupt:
        fail("interrupted; nothing was changed")
        return 128 + signal.SIGINT
    return 0


def fail(what: object) -> int:
    print(f"prepare_data: {printable(what)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))  # so that the temporary folder goes, too
    sys.exit(main())
