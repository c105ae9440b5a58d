"""distill/v1 is what protos/ generates. Descriptors are compared: they alone are the contract."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[1]
PROTO_NAMES = sorted(
    path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto")
)


@pytest.fixture(scope="module")
def compiled_protos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    image = tmp_path_factory.mktemp("buf") / "protos.binpb"
    # Beside the interpreter: the extra `dev` installs it there, on the PATH or not.
    buf = Path(sys.executable).with_name("buf")
    process = subprocess.run(
        [buf, "build", "--as-file-descriptor-set", "--exclude-source-info", "-o", image],
        cwd=ROOT,
        env={**os.environ, "HOME": str(image.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return {file.name: file for file in FileDescriptorSet.FromString(image.read_bytes()).file}


def generated_module(proto_name: str, suffix: str):
    return importlib.import_module(proto_name.removesuffix(".proto").replace("/", ".") + suffix)


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """protoc leaves the default JSON names out of generated code; buf writes them."""

    def clear(messages) -> None:
        for message in messages:
            for field in (*message.field, *message.extension):
                field.ClearField("json_name")
            clear(message.nested_type)

    copy = FileDescriptorProto()
    copy.CopyFrom(file)
    clear(copy.message_type)
    return copy


def test_there_are_protos() -> None:
    assert PROTO_NAMES


@pytest.mark.parametrize("proto_name", PROTO_NAMES)
def test_generated_descriptor_is_the_proto(
    proto_name: str, compiled_protos: dict[str, FileDescriptorProto]
) -> None:
    generated = FileDescriptorProto()
    generated_module(proto_name, "_pb2").DESCRIPTOR.CopyToProto(generated)
    assert without_json_names(generated) == without_json_names(compiled_protos[proto_name]), (
        "distill/v1 is out of date: run `make protos` and commit the result"
    )


@pytest.mark.parametrize("proto_name", PROTO_NAMES)
def test_stub_has_every_rpc(proto_name: str) -> None:
    services = generated_module(proto_name, "_pb2").DESCRIPTOR.services_by_name.values()
    module = generated_module(proto_name, "_pb2_grpc")
    with grpc.insecure_channel("127.0.0.1:1") as channel:  # never dialled
        for service in services:
            stub = getattr(module, f"{service.name}Stub")(channel)
            missing = [rpc.name for rpc in service.methods if not hasattr(stub, rpc.name)]
            assert missing == [], f"{service.name}: run `make protos`"


def test_no_generated_module_outlives_its_proto() -> None:
    generated = {
        path.relative_to(ROOT).as_posix().replace("_pb2.py", ".proto")
        for path in (ROOT / "distill" / "v1").glob("*_pb2.py")
    }
    assert generated == set(PROTO_NAMES)


@pytest.mark.parametrize(
    ("service_name", "servicer_name"),
    [
        ("TeacherService", "teacher_service.servicer.TeacherServicer"),
        ("StudentService", "student_service.servicer.StudentServicer"),
    ],
)
def test_servicer_answers_every_rpc(service_name: str, servicer_name: str) -> None:
    module_name, _, class_name = servicer_name.rpartition(".")
    servicer = getattr(importlib.import_module(module_name), class_name)
    proto_name = f"distill/v1/{module_name.split('.')[0]}.proto"
    generated = generated_module(proto_name, "_pb2_grpc")
    base = getattr(generated, f"{service_name}Servicer")
    rpcs = generated_module(proto_name, "_pb2").DESCRIPTOR.services_by_name[service_name].methods
    unanswered = [
        rpc.name for rpc in rpcs if getattr(servicer, rpc.name) is getattr(base, rpc.name)
    ]
    assert unanswered == []
