"""TrainingClient: Kubeflow's own, with a `train` that makes the rest of the job.

Everything else (get_job, list_jobs, wait_for_job_conditions, get_job_logs, …) is the stock code,
on a Kubernetes cluster or on a LocalCluster.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeflow.training import TrainingClient as StockTrainingClient
from kubeflow.training.constants import constants
from kubernetes.client import ApiException, Configuration
from kubernetes.config import ConfigException

from peftjob import arguments, inference, manifest, preflight, submission
from peftjob.arguments import Variables
from peftjob.credentials import Secrets
from peftjob.errors import UsageError
from peftjob.job import Job
from peftjob.local import LocalCluster
from peftjob.objects import Objects
from peftjob.pods import Elastic, Images, Resources, RunPolicy, Scheduling
from peftjob.service import INFERENCE_API, Service, create_service
from peftjob.spec import PeftJobSpec
from peftjob.volumes import Output, Registry, Storage, Volume


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
        try:
            super().__init__(
                config_file=config_file,
                context=context,
                client_configuration=client_configuration,
                job_kind=job_kind,
                **given,
            )
        except ConfigException as err:
            raise UsageError(
                f"no Kubernetes cluster: {err}; set KUBECONFIG, or use this machine: "
                "TrainingClient(cluster=LocalCluster()), in a shell --local"
            ) from err
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
        init_resources: Resources | None = None,
        secrets: Secrets | None = None,
        scheduling: Scheduling | None = None,
        volumes: Sequence[Volume] = (),
        run_policy: RunPolicy | None = None,
        elastic: Elastic | None = None,
        images: Images | None = None,
        dry_run: bool = False,
        wait: bool = False,
    ) -> Any:
        """Tune a base model with LoRA on num_workers replicas and publish the adapter.

        The positional arguments are the stock client's; where that one wants its parameter
        classes, these are taken too:

        Args:
            resources_per_worker: Resources, or as the stock client has it, with `gpu_memory` (24Gi,
                or the name of a GPU: a job that can't fit is refused) and `shared_memory`, the
                size of /dev/shm.
            model_provider_parameters: A URI, a BaseModelSource, or HuggingFaceModelParams.
            dataset_provider_parameters: A URI, a DatasetSource, HuggingFaceDatasetParams or
                S3DatasetParams.
            trainer_parameters: TrainerParams, or HuggingFaceTrainerParams; None takes defaults.
            output: Where the adapter goes: an Output, a Registry, a registry reference
                (`host/name:tag`), or s3://…, hf://…, pvc://claim. None keeps it in the local
                cluster's registry, or on the output claim.
            storage: The volume for inputs; replaces `storage_config`.
            init_resources: Of the storage initializer.
            secrets: Names of the Secrets for the hub, S3 and the registry.
            scheduling: Nodes, tolerations, priority, service account.
            volumes: Of yours, mounted into the pods.
            run_policy: Restarts, deadlines, clean-up.
            elastic: Bounds within which replicas may come and go.
            dry_run: Create nothing and return the objects that would be created.
            wait: Show how it goes, and return when the job has succeeded.

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
                "labels": labels or {},
                "annotations": annotations or {},
                "num_workers": num_workers,
                "num_procs_per_worker": num_procs_per_worker,
                "resources": arguments.resources(resources_per_worker, "resources_per_worker"),
                "base_model": arguments.model(model_provider_parameters),
                "dataset": arguments.dataset(dataset_provider_parameters),
                **arguments.trainer(trainer_parameters),
                **arguments.task(model_provider_parameters),
                "init_env": [
                    *arguments.dataset_env(dataset_provider_parameters),
                    *arguments.variables("init_env_vars", init_env_vars),
                ],
                "env": arguments.variables("env_vars", env_vars),
                "storage": arguments.storage(storage, storage_config),
                "output": arguments.output(output),
                "queue_name": queue_name or None,
                "volumes": arguments.each(volumes),
                **arguments.parts(
                    secrets=secrets,
                    scheduling=scheduling,
                    run_policy=run_policy,
                    elastic=elastic,
                    images=images,
                    init_resources=init_resources,
                ),
            }
        )
        if dry_run:
            preflight.check_addresses(spec)
            return manifest.render(spec)
        job = self.submit(spec)
        return job.wait(progress=True) if wait else job

    def submit(self, spec: PeftJobSpec) -> Job:
        """Create a job's objects: all of them or none.

        Raises:
            SpecError: claims or Secrets that it names are not there.
            OutOfMemoryError: the job can't fit into the memory that its resources name.
            DataError: the dataset is on this machine, and rows of it can't be trained on.
            ConflictError, JobError: as `train` does.
        """
        if self.cluster is not None:
            spec = _for_one_machine(spec)
        objects = Objects(self, spec.namespace)
        preflight.check(spec, objects)
        submission.submit(spec, objects)
        return Job(self, spec.name, spec.namespace)

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
        **options: Any,
    ) -> Service:
        """Serve a base model and adapters as an InferenceService.

        Args:
            name: Of the InferenceService.
            base_model: Its URI.
            adapters: Name → reference or URI of an adapter; `job.adapter` is one.
            options: strengths, watch, keys, gpu, scaling and so on, as inference.render has them.

        Raises:
            UsageError: a name that can't be used.
            ConflictError: there is one of that name.
            JobError: the cluster refused it.
        """
        if not isinstance(adapters, Mapping):
            raise UsageError(
                f"adapters: give a dict of names to references, such as {{{name!r}: job.adapter}}, "
                f"not a value of type {type(adapters).__name__}"
            )
        namespace = namespace or self.namespace
        body = inference.render(
            name,
            base_model,
            {adapter: arguments.adapter_uri(ref) for adapter, ref in adapters.items()},
            namespace=namespace,
            resources=arguments.resources(resources).get("requests"),
            **options,
        )
        return create_service(self, body)

    def services(self, *, namespace: str | None = None) -> list[Service]:
        """Handles on all InferenceServices; there are none on a cluster without KServe."""
        namespace = namespace or self.namespace
        try:
            found = self.custom_api.list_namespaced_custom_object(
                *INFERENCE_API, namespace, "inferenceservices"
            )
        except ApiException as err:
            if err.status != 404:
                raise
            return []
        return [Service(self, item["metadata"]["name"], namespace) for item in found["items"]]

    def service(self, name: str, *, namespace: str | None = None) -> Service:
        """A handle on an InferenceService. Raises NotFoundError where there is none."""
        service = Service(self, name, namespace or self.namespace)
        service.object()
        return service


def _for_one_machine(spec: PeftJobSpec) -> PeftJobSpec:
    """Without what a local cluster has no use for: a queue, logins for pulling images."""
    images = spec.images.model_copy(update={"pull_secrets": ()})
    return spec.model_copy(update={"queue_name": None, "images": images})
