#!/bin/sh
# Makes a compositor folder out of the AnyDoor weights: at once usable for inference, and a start for training.
#   sh scripts/convert_weight_anydoor.sh                           models/released/anydoor -> models/bifrost_start
#   sh scripts/convert_weight_anydoor.sh --source FILE --out FOLDER [more options of `cldm.convert anydoor`]
exec sh "$(dirname -- "$0")/convert_weight.sh" anydoor "$@"
