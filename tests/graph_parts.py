"""Parts of an ONNX graph, to be looked at and spoilt by tests."""

import numpy as np
from onnx import numpy_helper


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def tensors(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


def replaced(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
