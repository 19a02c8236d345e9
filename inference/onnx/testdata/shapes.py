"""Runs the exported models with ONNX Runtime at batch 2 and writes the shape of
every value that a node computes, as ONNX Runtime sees it. Run in this folder.
"""
import glob
import json

import numpy as np
import onnx
import onnxruntime

shapes = {}
for path in sorted(glob.glob("*.onnx")):
    model = onnx.load(path)
    declared = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in declared:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feed = {i.name: np.zeros([2 if isinstance(d, str) else d for d in i.shape], np.float32) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    shapes[path] = {n: list(v.shape) for n, v in zip(names, session.run(names, feed))}
lines = [json.dumps(k) + ": " + json.dumps(v) for k, v in shapes.items()]
open("shapes.json", "w").write("{\n" + ",\n".join(lines) + "\n}\n")
