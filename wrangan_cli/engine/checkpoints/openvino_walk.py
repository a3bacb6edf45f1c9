"""Steps through OpenVINO's representation of a network, each checked."""

from torch import Tensor, float32

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.openvino_ir import Graph, Node, Source

TOLERANCE = 1e-4
"""How far the representation's constants may lie from those that the network computes with."""


class Walk:
    """Steps through a graph; each raises FileError where the graph has another form."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._named = {node.name: node for node in graph.constants() if node.name.startswith("m.")}

    def find(self, name: str) -> Node:
        """The constant of this name."""
        if name not in self._named:
            raise FileError(self.graph.path, f"lacks the constant {name}: not the expected network")
        return self._named[name]

    def named(self, name: str) -> Tensor:
        """The values of the constant of this name."""
        return self.constant(self.find(name))

    def result(self) -> Node:
        """What the network gives."""
        results = [node for node in self.graph.nodes.values() if node.type == "Result"]
        if len(results) != 1:
            raise FileError(self.graph.path, f"gives {len(results)} results, expected one")
        return self.input(results[0], "Result", 0)

    def input(self, node: Node, kind: str, number: int) -> Node:
        """Input `number` of a node that must be of this kind."""
        if node.type != kind or number >= len(node.inputs):
            raise self.unlike(node, f"expected {kind} with an input {number}")
        return self.graph.nodes[node.inputs[number].node]

    def only_user(self, node: Node, kind: str) -> Node:
        """The one node of this kind that takes what `node` gives."""
        users = [user for user in self.graph.users[node.id] if user.type == kind]
        if len(users) != 1:
            raise self.unlike(node, f"expected one {kind} after it, found {len(users)}")
        return users[0]

    def user_of(self, node: Node, port: int, kind: str) -> Node:
        """The one node of this kind that takes output `port` of `node`."""
        source = Source(node.id, port)
        users = [user for user in self.graph.users[node.id] if user.type == kind and source in user.inputs]
        if len(users) != 1:
            raise self.unlike(node, f"expected one {kind} after its output {port}, found {len(users)}")
        return users[0]

    def operands(self, node: Node, kind: str) -> tuple[Node, Node]:
        """Both inputs of a node of this kind; a constant last."""
        first, second = self.input(node, kind, 0), self.input(node, kind, 1)
        return (second, first) if first.type == "Const" else (first, second)

    def constant_operand(self, node: Node, kind: str) -> tuple[Node, Node] | None:
        """The other input and the constant one; None if this is not such a node with a constant."""
        if node.type != kind:
            return None
        other, constant = self.operands(node, kind)
        return (other, constant) if constant.type == "Const" else None

    def other_operand(self, node: Node, name: str) -> Node:
        """Of a sum the input that is not the constant of this name."""
        first, second = self.operands(node, "Add")
        if second.name != name:
            raise self.unlike(node, f"expected a sum with {name}")
        return first

    def constant(self, node: Node) -> Tensor:
        """Values of a constant; what is not whole numbers must be float32."""
        if node.type != "Const":
            raise self.unlike(node, "expected a constant")
        values = self.graph.tensor(node)
        if values.is_floating_point() and values.dtype != float32:
            raise self.unlike(node, f"holds {node.attributes['element_type']}, expected f32")
        return values

    def expect_near(self, node: Node | None, wanted: float, what: str) -> None:
        """A constant of one number that must be `wanted`."""
        values = None if node is None else self.constant(node)
        if values is None or values.numel() != 1 or not abs(float(values) - wanted) <= TOLERANCE:
            found = "none" if values is None else ", ".join(f"{v:.6f}" for v in values.flatten()[:3].tolist())
            raise FileError(self.graph.path, f"{what} is {found}, expected {wanted:.6f}")

    def check_shape(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """The tensor must have this shape."""
        if tuple(tensor.shape) != shape:
            raise FileError(
                self.graph.path, f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}"
            )

    def check_padding(self, node: Node, padding: str) -> None:
        """A convolution must have this padding on all sides, and a stride of 1."""
        about = node.attributes
        given = [about.get(name) for name in ("strides", "dilations", "pads_begin", "pads_end")]
        if given != ["1, 1", "1, 1", padding, padding]:
            raise self.unlike(node, f"strides, dilations, padding are {given}")

    def check_transposed(self, product: Node) -> None:
        """A product of matrices must be x · Wᵀ."""
        about = product.attributes
        if (about.get("transpose_a"), about.get("transpose_b")) != ("false", "true"):
            raise self.unlike(product, "expected a product with a transposed matrix")

    def check_same(self, node: Node, other: Node, name: str) -> None:
        """Both must be one node; name: what would be joined to it."""
        if node is not other:
            raise FileError(
                self.graph.path, f"{name} is joined to {node.name} ({node.type}), expected {other.name}"
            )

    def unlike(self, node: Node, what: str) -> FileError:
        """The error about a node."""
        return FileError(
            self.graph.path,
            f"layer {node.id} ({node.type} {node.name}): {what}: not the expected network",
        )
