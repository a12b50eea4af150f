"""python run_onnx.py MODEL.onnx IMAGE: the class of an image, with numpy, onnxruntime and pillow alone."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
kept = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items() if text[0] in "{["}
steps, image = kept["eval_transform"], Image.open(sys.argv[2]).convert("RGB")
sides = [int(steps["resize_size"] * side / min(image.size)) for side in image.size]
left, top = [round((side - steps["crop_size"]) / 2) for side in sides]
image = image.resize(sides, Image.Resampling[steps["interpolation"].upper()])
image = image.crop((left, top, left + steps["crop_size"], top + steps["crop_size"]))
pixels = (np.asarray(image, np.float32) / 255 - np.float32(kept["mean"])) / np.float32(kept["std"])
logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0][0]
print(kept["class_names"][logits.argmax()])
