"""Print what our contracts are on the wire: `message.field = number type`, and each method.

`--write` puts it into protos/wire_lock.txt, with which tests/test_protos.py compares.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tools.gen_protos import PROTOS, sources

LOCK = PROTOS / "wire_lock.txt"


def descriptors() -> list[object]:
    """Compile every contract with its comments; returns FileDescriptorProtos."""
    import grpc_tools
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        files = [str(path.relative_to(PROTOS)) for path in sources()]
        options = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--descriptor_set_out={out}"]
        if protoc.main([*options, "--include_source_info", *files]) != 0:
            raise RuntimeError("protoc refused a contract")
        return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def lines() -> list[str]:
    """Return the lock's lines, sorted."""
    return sorted(line for file in descriptors() for line in file_lines(file))


def file_lines(file: object) -> list[str]:
    """Return the lines of one FileDescriptorProto."""
    found: list[str] = []
    package = file.package  # type: ignore[attr-defined]  # descriptors have no types here
    for message in file.message_type:  # type: ignore[attr-defined]
        found += _message(f"{package}.{message.name}", message)
    for enum in file.enum_type:  # type: ignore[attr-defined]
        found += [f"{package}.{enum.name}.{value.name} = {value.number}" for value in enum.value]
    for service in file.service:  # type: ignore[attr-defined]
        found += [_method(f"{package}.{service.name}", method) for method in service.method]
    return found


def _message(name: str, message: object) -> list[str]:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    found = []
    for field in message.field:  # type: ignore[attr-defined]
        kind = field.type_name.lstrip(".") or Field.Type.Name(field.type).removeprefix("TYPE_").lower()
        repeated = "repeated " if field.label == Field.LABEL_REPEATED else ""
        found.append(f"{name}.{field.name} = {field.number} {repeated}{kind}")
    for nested in message.nested_type:  # type: ignore[attr-defined]
        found += _message(f"{name}.{nested.name}", nested)
    return found


def _method(service: str, method: object) -> str:
    def side(kind: str, *, streams: bool) -> str:
        return ("stream " if streams else "") + kind.lstrip(".")

    taken = side(method.input_type, streams=method.client_streaming)  # type: ignore[attr-defined]
    given = side(method.output_type, streams=method.server_streaming)  # type: ignore[attr-defined]
    return f"{service}/{method.name}: {taken} -> {given}"  # type: ignore[attr-defined]


def main() -> int:
    """Print or write the lock."""
    text = "\n".join(lines()) + "\n"
    if "--write" in sys.argv:
        LOCK.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
