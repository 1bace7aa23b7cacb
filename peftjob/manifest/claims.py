"""The claims that peftjob makes for a job: for its inputs (mode shared) and its output."""

from collections.abc import Sequence

from peftjob import contract
from peftjob.manifest.names import inputs_claim, inputs_digest, output_claim
from peftjob.manifest.parts import Object, given, metadata
from peftjob.spec import PeftJobSpec


def render_claims(spec: PeftJobSpec) -> list[Object]:
    claims = []
    name = inputs_claim(spec)
    if spec.storage.mode == "shared" and name is not None:
        modes = spec.storage.access_modes or (
            ("ReadWriteMany",) if spec.num_workers > 1 or spec.elastic else ("ReadWriteOnce",)
        )
        claims.append(render_inputs(spec, name, modes))
    if spec.output.claim is None:
        # Any replica of an elastic job may come to be rank 0, which writes.
        mode = "ReadWriteMany" if spec.elastic else "ReadWriteOnce"
        output = spec.output
        claims.append(
            _claim(spec, output_claim(spec), output.size, output.storage_class, [mode], {})
        )
    return claims


def render_inputs(spec: PeftJobSpec, name: str, modes: Sequence[str]) -> Object:
    """A claim for inputs, with the digest of those that it is for."""
    annotations = {contract.INPUTS_ANNOTATION: inputs_digest(spec)}
    storage = spec.storage
    return _claim(spec, name, storage.size, storage.storage_class, modes, annotations)


def _claim(
    spec: PeftJobSpec,
    name: str,
    size: str,
    storage_class: str | None,
    modes: Sequence[str],
    annotations: dict[str, str],
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(spec, name, annotations=annotations),
        "spec": {
            "accessModes": list(modes),
            "resources": {"requests": {"storage": size}},
            **given("storageClassName", storage_class),
        },
    }
