"""Leaves out of an ONNX graph the rows that nothing reads.

A head that reads one token of a sequence, [CLS] or the last, still has the last layer computed for
all of them. What treats each row by itself (products with weights, sums, LayerNormalization, Gelu)
gives the same for one row as for that row among all. So the reading (Gather or GatherND) moves up
through such nodes, to where rows meet: in the last layer of a transformer all but attention is
then computed for one token.
"""

from collections.abc import Iterator

import onnx_ir as ir

BY_ROW = frozenset(
    {
        *("Add", "Div", "Erf", "Gelu", "LayerNormalization", "MatMul", "Mul"),
        *("Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"),
    }
)
"""What may treat each row by itself; ``_by_row`` says whether it does."""


def drop_unread_rows(graph: ir.Graph) -> int:
    """Change ``graph``, whose values must have their shapes; how many products with weights are
    now computed for the rows that are read, and not for all."""
    return sum(_move_up(graph, node) for node in tuple(graph) if _reads_rows(node))


def _reads_rows(node: ir.Node) -> bool:
    """Return whether a node takes some of the rows of (batch, rows, width): the same of all items,
    or of each its own."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None or len(source.shape) != 3:
        return False
    if node.op_type == "Gather":
        return bool(node.attributes.get_int("axis", 0) == 1)
    if node.op_type != "GatherND" or node.attributes.get_int("batch_dims", 0) != 0:
        return False
    indices = node.inputs[1]
    return indices is not None and indices.shape is not None and indices.shape[-1] == 2


def _move_up(graph: ir.Graph, gather: ir.Node) -> int:
    source = gather.inputs[0]
    assert source is not None and source.shape is not None
    above = _above(graph, gather, source.shape)
    nodes = [node for node in graph if node in above]
    products = sum(node.op_type == "MatMul" for node in nodes)
    if not products:
        return 0
    new_values: dict[ir.Value, ir.Value] = {}
    for value in _entering(nodes, source.shape):
        own = ir.node(gather.op_type, [value, *gather.inputs[1:]], dict(gather.attributes))
        own.outputs[0].type = value.type
        own.outputs[0].shape = _shape_of_taken(gather, value)
        graph.insert_before(gather, own)
        new_values[value] = own.outputs[0]
    for node in nodes:
        for place, input_value in enumerate(node.inputs):
            if input_value in new_values:
                node.replace_input_with(place, new_values[input_value])
        node.outputs[0].shape = _shape_of_taken(gather, node.outputs[0])
        if node.op_type == "LayerNormalization":
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    graph.remove(nodes)
    graph.insert_before(gather, nodes)
    gather.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(gather, safe=True)
    return products


def _above(graph: ir.Graph, gather: ir.Node, rows: ir.Shape) -> set[ir.Node]:
    """Return the nodes that work for ``gather`` alone and treat each row by itself."""
    nodes = {gather}
    for node in reversed(graph):
        result = node.outputs[0]
        if result.is_graph_output() or len(node.outputs) > 1:
            continue
        if result.uses() and set(result.consumers()) <= nodes and _by_row(node, rows):
            nodes.add(node)
    return nodes - {gather}


def _by_row(node: ir.Node, rows: ir.Shape) -> bool:
    """Return values, from rows like those of ``rows``, and values that are the same for all of
    them, to rows."""
    if node.op_type not in BY_ROW or node.domain or not _has_rows(node.outputs[0], rows):
        return False
    first, *others = node.inputs
    if node.op_type == "MatMul":
        return _has_rows(first, rows) and _dimensions(others[0]) == 2
    if node.op_type == "LayerNormalization":
        return _has_rows(first, rows) and node.attributes.get_int("axis", -1) in (-1, 2)
    return all(_has_rows(value, rows) or _dimensions(value) in (0, 1) for value in node.inputs)


def _has_rows(value: ir.Value | None, rows: ir.Shape) -> bool:
    shape = None if value is None else value.shape
    if shape is None or len(shape) != 3 or shape.is_unknown_dim(0) or shape.is_unknown_dim(1):
        return False
    return tuple(shape)[:2] == tuple(rows)[:2]


def _dimensions(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _entering(nodes: list[ir.Node], rows: ir.Shape) -> Iterator[ir.Value]:
    """Yield values with rows that ``nodes`` take from elsewhere, once each."""
    inputs = dict.fromkeys(value for node in nodes for value in node.inputs)
    for value in inputs:
        if value is not None and value.producer() not in nodes and _has_rows(value, rows):
            yield value


def _shape_of_taken(gather: ir.Node, value: ir.Value) -> ir.Shape | None:
    """Return the shape of what ``gather`` takes from ``value``."""
    shape = gather.outputs[0].shape
    if shape is None or value.shape is None:
        return None
    return ir.Shape([*shape[:-1], value.shape[-1]])
