"""The files of a volume that the kubelet writes. Pure.

Source: the kubelet's volume plugins configmap, secret, downwardapi and projected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.kubelet.core.brought import (
    DownwardFiles,
    FieldRef,
    ObjectFiles,
    Origin,
    Projected,
    TokenFile,
)
from services.kubelet.core.model import ConfigMap, Pod, Secret
from services.kubelet.core.resolve import Found, MissingError, Surroundings, amount_text, field_text


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file holds, and its mode."""

    data: bytes = field(repr=False)
    mode: int


Payload = Mapping[str, FileContent]


def payload(
    pod: Pod, volume: Projected, found: Found, around: Surroundings, tokens: Mapping[TokenFile, str]
) -> dict[str, FileContent]:
    """Return every file by its path in the volume; a later source wins. Raises `MissingError`."""
    files: dict[str, FileContent] = {}
    for source in volume.sources:
        match source:
            case ObjectFiles():
                files |= _of_object(source, found, volume.default_mode)
            case DownwardFiles():
                files |= _of_pod(pod, source, around, volume.default_mode)
            case TokenFile():
                files[source.path] = FileContent(tokens[source].encode(), volume.default_mode)
    return files


def _of_object(source: ObjectFiles, found: Found, default_mode: int) -> dict[str, FileContent]:
    value = found.objects.get((source.origin, source.name))
    if value is None:
        if source.optional:
            return {}
        raise MissingError(f'{source.origin.value.lower()} "{source.name}" not found')
    data = _bytes_of(value)
    if not source.items:
        return {key: FileContent(part, default_mode) for key, part in data.items()}
    files = {}
    for item in source.items:
        if item.key in data:
            files[item.path] = FileContent(data[item.key], default_mode if item.mode is None else item.mode)
        elif not source.optional:
            what = "secret" if source.origin is Origin.SECRET else "config"
            raise MissingError(f"{source.name} references non-existent {what} key: {item.key}")
    return files


def _bytes_of(value: ConfigMap | Secret) -> dict[str, bytes]:
    if isinstance(value, Secret):
        return dict(value.data)
    return {**{key: text.encode() for key, text in value.data.items()}, **value.binary_data}


def _of_pod(
    pod: Pod, source: DownwardFiles, around: Surroundings, default_mode: int
) -> dict[str, FileContent]:
    files = {}
    for item in source.items:
        ref = item.source
        text = (
            field_text(pod, ref.path, around)
            if isinstance(ref, FieldRef)
            else amount_text(pod, None, ref, around)
        )
        files[item.path] = FileContent(text.encode(), default_mode if item.mode is None else item.mode)
    return files


def token_files(volume: Projected) -> tuple[TokenFile, ...]:
    """Return the tokens that a volume wants."""
    return tuple(source for source in volume.sources if isinstance(source, TokenFile))


def is_secret(volume: Projected) -> bool:
    """Tell whether a volume must not lie on a disk where that can be avoided."""
    return any(
        isinstance(source, TokenFile) or (isinstance(source, ObjectFiles) and source.origin is Origin.SECRET)
        for source in volume.sources
    )
