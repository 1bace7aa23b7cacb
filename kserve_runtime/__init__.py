"""The server: one base model and its adapters, behind the OpenAI and KServe v2 protocols.

`python -m kserve_runtime --model_name NAME --model_dir DIR --adapter NAME=SOURCE` loads the base
model once, the adapters beside it, and answers each request with the adapter that its `model`
names. It runs on the KServe SDK (data plane, model repository, REST server); the OpenAI routes are
ours, because those of the SDK can't be imported without vLLM.

    args, settings    command line → what the server is started with
    sources     where the base model is; adapter SOURCE → folder, digest, fingerprint
    listener    the socket
    engine      the Protocol of an engine, and the values that pass through it
    engines     which one serves, and its start
    transformers_engine    the engine on transformers: its thread and its queue
        running_batch    the rows that are generated together
        base_model    a folder → a model
        adapter_config, adapter_files    a folder → checked LoRA weights
        merging     one adapter that can't be mixed, made a part of the model
        packed, attention    a model's projections and attention, made fast on a CPU
        lora        many adapters in one batch
        lora_products    and how they are multiplied; on a CPU in lora_kernel.c
        recorded    a step that is recorded once and replayed, on GPUs
        kv_batch    keys and values of rows that join and leave
        prefixes    and of rows that have left, for those that begin like them
        row, sampling, detokenizer    one request: its tokens, their choice, their text
    vllm_engine    the engine on vLLM, where it is installed
        vllm_calls    what vLLM is called with and answers; they alone import it
        vllm_mixes    adapters, strengths and blends → one LoRA adapter, for vLLM
    tokenizer   text and messages → tokens
    catalogue   names → the base model and adapters, at any moment
    loading, watching    adapters come, change and go while requests run
    adapter_cache, base_weights    where they are kept; whether they were trained on this model
    keys, gate  who may ask, how much, and who may change adapters
    metrics, process    what Prometheus is told, what the log says of memory
    schemas, prompts, blends    the OpenAI protocol's requests → the engine's
    streams, answers, tool_calls    the engine's chunks → the OpenAI protocol's answers
    routing, errors, background    what all routes share
    openai_routes, adapter_routes, metric_routes, page    the routes
    server      KServe's server with our routes; readiness, drain

It must not train, must not write to the model's folder, and must not load pickled weights.
May import peftjob.{cgroup,contract,errors,spec,oci} and provider; never peftjob.client,
peftjob.local, peftjob.cli or llm_trainer. Importing the package loads nothing.
"""
