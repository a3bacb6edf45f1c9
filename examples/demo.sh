#!/usr/bin/env bash
# Align → invert → edit → interpolate → measure → paste back, on a photograph: examples/demo.sh [FOLDER]
#
# The photograph: scikit-image's astronaut (NASA, public domain). The second face is a sample of the
# model, at a seed that no training and no measurement uses.
set -euo pipefail

out=${1:-demo}
here=$(cd "$(dirname "$0")" && pwd)

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out"/snapshots "$out"/photos "$out"/codes "$out"/edited
mkdir -p "$out"

run python "$here/photograph.py" "$out/snapshots/astronaut.png"
run wrangan align "$out/snapshots" --out "$out/photos"
run wrangan generate --seeds 900002 --truncation 0.7 --out "$out/photos"

# Half of the default's steps, with the rate of w that was measured for so many (docs/models.md).
run wrangan invert "$out/photos" --out "$out/codes" --steps "${STEPS:-200}" --lr 0.05

for edit in "smile 2" "age 3" "pose 1.5"; do
    run wrangan edit "$out/codes" --direction "${edit% *}" --strength "${edit#* }" --out "$out/edited"
done

set -- "$out"/codes/*.st
run wrangan interpolate "$1" "$2" --steps 5 --out "$out/between.png"
run wrangan interpolate "$1" "$2" --steps 12 --out "$out/between.gif"

run wrangan evaluate --metric mse --metric psnr --metric ms-ssim --metric st-lpips-alex --metric st-lpips-vgg \
    --codes "$out/codes" --photos "$out/photos" | tee "$out/table.txt"

run wrangan paste "$out/edited/astronaut-smile+2.png" --photo "$out/snapshots/astronaut.png" \
    --transform "$out/photos/astronaut.align.json" --out "$out/astronaut-smiling.png"

run python "$here/overview.py" "$out"

cat <<EOT

Made in $out/:
  overview.png             photograph | inverted | smile, age, pose: look at this one first
  astronaut-smiling.png    the edited face in its photograph
  between.png              from one code to another, also as between.gif
  table.txt                how close the codes come to the photographs
  photos/ codes/ edited/   the edits at 1024 px
EOT
