"""Checked steps through OpenVINO's representation of a network."""

from torch import Tensor, float32

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.openvino_ir import Graph, Node, Source

TOLERANCE = 1e-4
"""How far the constants of the representation may differ from those of our implementation."""


class Walk:
    """Steps through a graph; each raises FileError if the graph is not as expected."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._named = {node.name: node for node in graph.constants() if node.name.startswith("m.")}

    def find(self, name: str) -> Node:
        """The constant with this name."""
        if name not in self._named:
            raise FileError(self.graph.path, f"lacks the constant {name}: not the expected network")
        return self._named[name]

    def named(self, name: str) -> Tensor:
        """The values of the constant with this name."""
        return self.constant(self.find(name))

    def result(self) -> Node:
        """The output of the network."""
        results = [node for node in self.graph.nodes.values() if node.type == "Result"]
        if len(results) != 1:
            raise FileError(self.graph.path, f"has {len(results)} results, expected one")
        return self.input(results[0], "Result", 0)

    def input(self, node: Node, kind: str, number: int) -> Node:
        """Input `number` of a node, which must be of this kind."""
        if node.type != kind or number >= len(node.inputs):
            raise self.error_at(node, f"expected {kind} with an input {number}")
        return self.graph.nodes[node.inputs[number].node]

    def only_user(self, node: Node, kind: str) -> Node:
        """The only node of this kind that uses an output of `node`."""
        users = [user for user in self.graph.users[node.id] if user.type == kind]
        if len(users) != 1:
            raise self.error_at(node, f"expected one {kind} after it, found {len(users)}")
        return users[0]

    def user_of(self, node: Node, port: int, kind: str) -> Node:
        """The only node of this kind that uses output `port` of `node`."""
        source = Source(node.id, port)
        users = [user for user in self.graph.users[node.id] if user.type == kind and source in user.inputs]
        if len(users) != 1:
            raise self.error_at(node, f"expected one {kind} after its output {port}, found {len(users)}")
        return users[0]

    def operands(self, node: Node, kind: str) -> tuple[Node, Node]:
        """Both inputs of a node, which must be of this kind; a constant comes last."""
        first, second = self.input(node, kind, 0), self.input(node, kind, 1)
        return (second, first) if first.type == "Const" else (first, second)

    def constant_operand(self, node: Node, kind: str) -> tuple[Node, Node] | None:
        """Both inputs of a node of this kind, of which the second is constant; None for any other node."""
        if node.type != kind:
            return None
        other, constant = self.operands(node, kind)
        return (other, constant) if constant.type == "Const" else None

    def other_operand(self, node: Node, name: str) -> Node:
        """The input of a sum that is not the constant with this name."""
        first, second = self.operands(node, "Add")
        if second.name != name:
            raise self.error_at(node, f"expected a sum with {name}")
        return first

    def constant(self, node: Node) -> Tensor:
        """The values of a constant: whole numbers, or float32."""
        if node.type != "Const":
            raise self.error_at(node, "expected a constant")
        values = self.graph.tensor(node)
        if values.is_floating_point() and values.dtype != float32:
            raise self.error_at(node, f"holds {node.attributes['element_type']}, expected f32")
        return values

    def expect_near(self, node: Node | None, wanted: float, what: str) -> None:
        """Check that a constant is the single number `wanted`."""
        values = None if node is None else self.constant(node)
        if values is None or values.numel() != 1 or not abs(float(values) - wanted) <= TOLERANCE:
            found = "none" if values is None else ", ".join(f"{v:.6f}" for v in values.flatten()[:3].tolist())
            raise FileError(self.graph.path, f"{what} is {found}, expected {wanted:.6f}")

    def check_shape(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """Check that the tensor has this shape."""
        if tuple(tensor.shape) != shape:
            raise FileError(
                self.graph.path, f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}"
            )

    def check_padding(self, node: Node, padding: str) -> None:
        """Check that a convolution has this padding on all sides, and stride 1."""
        about = node.attributes
        given = [about.get(name) for name in ("strides", "dilations", "pads_begin", "pads_end")]
        if given != ["1, 1", "1, 1", padding, padding]:
            raise self.error_at(node, f"strides, dilations, padding are {given}")

    def check_transposed(self, product: Node) -> None:
        """Check that a matrix product is x · Wᵀ."""
        about = product.attributes
        if (about.get("transpose_a"), about.get("transpose_b")) != ("false", "true"):
            raise self.error_at(product, "expected a product with a transposed matrix")

    def check_same(self, node: Node, other: Node, name: str) -> None:
        """Check that both are the same node. name: the part whose connection this is."""
        if node is not other:
            raise FileError(
                self.graph.path, f"{name} is connected to {node.name} ({node.type}), expected {other.name}"
            )

    def error_at(self, node: Node, what: str) -> FileError:
        """An error that names the node."""
        return FileError(
            self.graph.path,
            f"layer {node.id} ({node.type} {node.name}): {what}: not the expected network",
        )
