"""TrainingClient: Kubeflow's own, with a `train` that makes the rest of the job.

Everything else (get_job, list_jobs, wait_for_job_conditions, get_job_logs, …) is the stock code,
on a Kubernetes cluster or on a LocalCluster.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from kubeflow.training import TrainingClient as StockTrainingClient
from kubeflow.training.constants import constants
from kubernetes.client import ApiException, Configuration

from peftjob import arguments, contract, estimate, inference, local_data, manifest
from peftjob.arguments import Variables
from peftjob.base_model import architecture_of, on_this_machine
from peftjob.errors import ConflictError, JobError, ModelError, SourceError
from peftjob.job import Job, api_message
from peftjob.local import LocalCluster
from peftjob.service import INFERENCE_API, Service
from peftjob.spec import (
    Images,
    Output,
    PeftJobSpec,
    Registry,
    RunPolicy,
    Storage,
)

log = logging.getLogger("peftjob")

COLLECTION_WAIT_S = 60.0
"""How long claims of a deleted job of the same name may take to go."""


class TrainingClient(StockTrainingClient):  # type: ignore[misc]
    """Kubeflow's TrainingClient; `train` keeps the adapter, and much more.

    Args:
        cluster: A LocalCluster; None takes the Kubernetes cluster of the kubeconfig, and the
            other arguments as the stock client has them.
    """

    def __init__(
        self,
        config_file: str | None = None,
        context: str | None = None,
        client_configuration: Configuration | None = None,
        namespace: str | None = None,
        job_kind: str = constants.PYTORCHJOB_KIND,
        *,
        cluster: LocalCluster | None = None,
    ) -> None:
        given = {"namespace": namespace} if namespace else {}
        if cluster is not None:
            client_configuration = client_configuration or Configuration()
            given.setdefault("namespace", constants.DEFAULT_NAMESPACE)
        super().__init__(
            config_file=config_file,
            context=context,
            client_configuration=client_configuration,
            job_kind=job_kind,
            **given,
        )
        self.cluster = cluster
        if cluster is not None:
            cluster.attach(self)

    def train(
        self,
        name: str,
        namespace: str | None = None,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        num_workers: int = 1,
        num_procs_per_worker: int | str = 1,
        resources_per_worker: Any = None,
        model_provider_parameters: Any = None,
        dataset_provider_parameters: Any = None,
        trainer_parameters: Any = None,
        init_env_vars: Variables = None,
        env_vars: Variables = None,
        storage_config: Mapping[str, Any] | None = None,
        queue_name: str | None = None,
        *,
        output: Output | Registry | str | None = None,
        storage: Storage | None = None,
        run_policy: RunPolicy | None = None,
        images: Images | None = None,
        dry_run: bool = False,
        wait: bool = False,
    ) -> Any:
        """Tune a base model with LoRA on num_workers replicas and publish the adapter.

        The positional arguments are the stock client's; where that one wants its parameter
        classes, these are taken too:

        Args:
            resources_per_worker: As the stock client has it, and `gpu_memory` (24Gi, or the name of
                a GPU): a job that can't fit is refused.
            model_provider_parameters: A URI, a BaseModelSource, or HuggingFaceModelParams.
            dataset_provider_parameters: A URI, a DatasetSource, or HuggingFaceDatasetParams.
            trainer_parameters: TrainerParams, or HuggingFaceTrainerParams; None takes defaults.
            output: Where the adapter image goes: an Output, a Registry or a registry reference
                (`host/name:tag`). None keeps it in the local cluster's registry, or on the
                output claim.
            storage: The volume for inputs; replaces `storage_config`.
            run_policy: Restarts, deadlines, clean-up.
            dry_run: Create nothing and return the objects that would be created.
            wait: Return when the job has succeeded.

        Returns:
            A Job (or, with dry_run, a list of dicts).

        Raises:
            SpecError: what was asked for is not a job; all problems at once, nothing created.
            OutOfMemoryError: the job can't fit into the memory that its resources name.
            ConflictError: a job or a claim of that name is there, for something else.
            JobError: the cluster refused an object (nothing is left of it), or the job failed.
        """
        spec = PeftJobSpec.parse(
            {
                "name": name,
                "namespace": namespace or self.namespace,
                "labels": dict(labels or {}),
                "annotations": dict(annotations or {}),
                "num_workers": num_workers,
                "num_procs_per_worker": num_procs_per_worker,
                "resources": arguments.resources(resources_per_worker),
                "base_model": arguments.model(model_provider_parameters),
                "dataset": arguments.dataset(dataset_provider_parameters),
                **arguments.trainer(trainer_parameters),
                **arguments.task(model_provider_parameters),
                "init_env": arguments.variables("init_env_vars", init_env_vars),
                "env": arguments.variables("env_vars", env_vars),
                "storage": arguments.plain(storage)
                if storage
                else arguments.storage(storage_config),
                "output": arguments.output(output),
                "queue_name": queue_name or None,
                **({"run_policy": arguments.plain(run_policy)} if run_policy else {}),
                **({"images": arguments.plain(images)} if images else {}),
            }
        )
        if dry_run:
            return manifest.render(spec)
        job = self.submit(spec)
        return job.wait() if wait else job

    def submit(self, spec: PeftJobSpec) -> Job:
        """Create a job's objects: all of them or none.

        Raises:
            OutOfMemoryError: the job can't fit into the memory that its resources name.
            DataError: the dataset is on this machine, and rows of it can't be trained on.
            ConflictError, JobError: as `train` does.
        """
        namespace = spec.namespace
        _check_fits(spec)
        local_data.check(spec)
        if self._job_uid(spec.name, namespace):
            raise ConflictError(
                f"a job {spec.name!r} is there already; choose another name or delete it first"
            )
        claims = [c for c in manifest.render_claims(spec) if self._needed(c)]
        if spec.queue_name:
            self._check_queue_exists(spec.queue_name, namespace)
        api = self.custom_api
        try:
            created = api.create_namespaced_custom_object(
                constants.GROUP,
                constants.VERSION,
                namespace,
                "pytorchjobs",
                manifest.render_job(spec),
            )
        except ApiException as err:
            raise _refused("PyTorchJob", spec.name, err) from err
        owner = {
            "apiVersion": created["apiVersion"],
            "kind": created["kind"],
            "name": spec.name,
            "uid": created["metadata"]["uid"],
        }
        for claim in claims:
            # Pods wait for their claims, so the job may come first: then the claims can be its
            # own, and go when it goes.
            claim["metadata"]["ownerReferences"] = [owner]
            try:
                self.core_api.create_namespaced_persistent_volume_claim(namespace, claim)
            except ApiException as err:
                self.delete_job(spec.name, namespace=namespace)
                name = claim["metadata"]["name"]
                raise _refused("PersistentVolumeClaim", name, err) from err
        return Job(self, spec.name, namespace)

    def job(self, name: str, *, namespace: str | None = None) -> Job:
        """A handle on a job that was submitted before. Raises NotFoundError where there is none."""
        job = Job(self, name, namespace or self.namespace)
        job.object()
        return job

    def serve(
        self,
        name: str,
        base_model: str,
        adapters: Mapping[str, str],
        *,
        namespace: str | None = None,
        resources: Any = None,
    ) -> Service:
        """Serve a base model and adapters as an InferenceService.

        Args:
            name: Of the InferenceService.
            base_model: Its URI.
            adapters: Name → reference or URI of an adapter; `job.adapter` is one.

        Raises:
            UsageError: a name that can't be used.
            ConflictError: there is one of that name.
            JobError: the cluster refused it.
        """
        namespace = namespace or self.namespace
        body = inference.render(
            name,
            base_model,
            {adapter: arguments.adapter_uri(ref) for adapter, ref in adapters.items()},
            namespace=namespace,
            resources=arguments.resources(resources).get("requests"),
        )
        try:
            self.custom_api.create_namespaced_custom_object(
                *INFERENCE_API, namespace, "inferenceservices", body
            )
        except ApiException as err:
            if err.status == 409:
                raise ConflictError(
                    f"a server {name!r} is there already; stop it first "
                    f"(`peftjob serve {name} --stop`), or choose another name"
                ) from err
            raise _refused("InferenceService", name, err) from err
        return Service(self, name, namespace)

    def service(self, name: str, *, namespace: str | None = None) -> Service:
        """A handle on an InferenceService. Raises NotFoundError where there is none."""
        service = Service(self, name, namespace or self.namespace)
        service.object()
        return service

    def _needed(self, claim: Mapping[str, Any]) -> bool:
        """Whether a claim has to be made; False where the one that is there was made for the same.

        Raises:
            ConflictError: it was made for something else.
        """
        metadata = claim["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        deadline = time.monotonic() + COLLECTION_WAIT_S
        while True:
            try:
                found = self.core_api.read_namespaced_persistent_volume_claim(name, namespace)
            except ApiException as err:
                if err.status == 404:
                    return True
                raise _refused("PersistentVolumeClaim", name, err) from err
            owners = found.metadata.owner_references or ()
            if not owners or any(self._job_uid(o.name, namespace) == o.uid for o in owners):
                break
            # Left from a deleted job: the cluster is about to remove it.
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        wanted = (metadata.get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
        has = (found.metadata.annotations or {}).get(contract.INPUTS_ANNOTATION)
        if not owners and wanted and wanted == has:
            return False
        raise ConflictError(
            f"a claim {name!r} is in namespace {namespace!r} and was not made for these inputs; "
            "choose another job name, delete the claim, or use it as it is with "
            f"storage=Storage(mode='existing', claim={name!r})"
        )

    def _job_uid(self, name: str, namespace: str) -> str | None:
        """The uid of the job of that name; None where there is none."""
        try:
            found = self.custom_api.get_namespaced_custom_object(
                constants.GROUP, constants.VERSION, namespace, "pytorchjobs", name
            )
        except ApiException as err:
            if err.status == 404:
                return None
            raise _refused("PyTorchJob", name, err) from err
        return str(found["metadata"]["uid"])


def _check_fits(spec: PeftJobSpec) -> None:
    """Refuse what can't run, where that can be told at once: the model is here, the memory named.

    Raises:
        OutOfMemoryError: it can't.
    """
    local = estimate.processes_of_replica(spec)
    device = estimate.device_of(spec.resources, processes=local)
    if device.memory_bytes is None:
        return
    reason = "it is not on this machine"
    folder = on_this_machine(spec.base_model)
    if folder is not None:
        try:
            model = architecture_of(folder, task=spec.task, labels=spec.num_labels or 2)
        except (SourceError, ModelError) as err:
            # The path may be one of the container's. What is wrong with the model is said there.
            reason = str(err)
        else:
            estimate.estimate(spec, model, device=device)
            return
    log.warning(
        "%s: whether %s fits into the memory is seen when the job starts, not now: %s",
        spec.name,
        spec.base_model.source,
        reason,
    )


def _refused(kind: str, name: str, err: ApiException) -> ConflictError | JobError:
    message = api_message(err) or str(err.reason)
    if err.status == 409:
        return ConflictError(
            f"{kind} {name!r} is there already; choose another name or delete it first"
        )
    return JobError(f"the cluster refused the {kind} {name!r} ({err.status}): {message}")
