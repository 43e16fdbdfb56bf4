#!/bin/sh
# OpenCV 5.0.0: `cv2.dnn.Net.forward()` of a network with several outputs answers with another output than before.
#
# The new engine of OpenCV 5, which is the usual one, gives the first output that the ONNX file declares. The engine
# of OpenCV 4, in 4.12.0 and as ENGINE_CLASSIC in 5.0.0, gives the last one. The outputs of a saliency or matting
# network with deep supervision have one shape (U2-Net declares seven, the fused mask first), so that nothing fails:
# the same program takes a coarse side output for the mask, or the mask for a side output, by the version that is
# installed. `getUnconnectedOutLayersNames()[0]` is no way out, as its order differs too; the output's name is.
#
# Prints what each engine gives for a network of two outputs, in both orders; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/outputs.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

folder, shape, found = Path(sys.argv[1]), [1, 1, 2, 2], {}
nodes = [helper.make_node("Sigmoid", ["x"], ["fused"]), helper.make_node("Neg", ["fused"], ["side"])]
engines = [name for name in ("ENGINE_CLASSIC", "ENGINE_NEW", "ENGINE_AUTO") if hasattr(cv2.dnn, name)]
for declared in (("fused", "side"), ("side", "fused")):
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
            for names in (("x",), declared)]
    graph = helper.make_graph(nodes, "two_outputs", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "two_outputs.onnx")
    for engine in engines or ["ENGINE_OF_4"]:
        given = [getattr(cv2.dnn, engine)] if engines else []
        net = cv2.dnn.readNetFromONNX(str(folder / "two_outputs.onnx"), *given)
        net.setInput(np.zeros(shape, np.float32))
        value = net.forward().flat[0]  # sigmoid(0) = 0.5, or its negative
        answer = "fused" if value > 0 else "side"
        found[f"{engine} {declared[0]}"] = answer
        order = ", ".join(net.getUnconnectedOutLayersNames())
        print(f"OpenCV {cv2.__version__} {engine:14} declared {', '.join(declared)}: forward() is {answer}; names {order}")
expected = {f"{engine} {names[0]}": names[0 if engine in ("ENGINE_NEW", "ENGINE_AUTO") else 1]
            for engine in engines or ["ENGINE_OF_4"] for names in (("fused", "side"), ("side", "fused"))}
sys.exit(json.dumps([found, expected]) if found != expected else 0)
PYTHON
for version in 4.12.0.88 5.0.0.93; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install -qq --disable-pip-version-check \
        "opencv-python-headless==$version" onnx==1.19.1 numpy==2.2.6
    "$folder/$version/bin/python" "$folder/outputs.py" "$folder"
done
echo "as stated: forward() means another output in OpenCV 5 than in OpenCV 4"
