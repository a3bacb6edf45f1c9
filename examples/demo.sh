#!/usr/bin/env bash
# Invert → edit → interpolate → evaluate on example photographs: examples/demo.sh [FOLDER]
#
# The photographs: scikit-image's astronaut (NASA, public domain), and samples of the bundled
# model itself at seeds that no training and no measurement uses.
set -euo pipefail

out=${1:-demo}
steps=${STEPS:-200}
here=$(cd "$(dirname "$0")" && pwd)

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out"/snapshots "$out"/photos "$out"/codes "$out"/edited
mkdir -p "$out"

run python "$here/photograph.py" "$out/snapshots/astronaut.png"
run wrangan align "$out/snapshots" --out "$out/photos"
run wrangan generate --seeds 900001-900005 --out "$out/photos"

run wrangan invert "$out/photos" --out "$out/codes" --steps "$steps"

for edit in "smile 3" "age 3" "eyeglasses 3"; do
    run wrangan edit "$out/codes" --direction "${edit% *}" --strength "${edit#* }" --out "$out/edited"
done

set -- "$out"/codes/*.st
run wrangan interpolate "$1" "$2" --steps 8 --out "$out/between.png"
run wrangan interpolate "$1" "$2" --steps 24 --out "$out/between.gif"

run wrangan evaluate --metric mse --metric psnr --metric ms-ssim --metric st-lpips-alex --metric st-lpips-vgg \
    --codes "$out/codes" --photos "$out/photos" | tee "$out/table.txt"

run python "$here/overview.py" "$out"

cat <<EOT

Made in $out/:
  overview.png   photograph | inverted | smile, age, eyeglasses: look at this one first
  between.png    from one code to another, also as between.gif
  table.txt      how close the codes come to the photographs
  photos/ codes/ edited/
EOT
