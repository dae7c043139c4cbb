"""Runs the real llama.cpp HTTP server on loopback until killed: `python -m tests.llama_process MODEL.gguf PORT`."""

from __future__ import annotations

import argparse
import threading

import xllamacpp

SEED = 3  # with it none of the tests' prompts is answered shorter than they ask


def main() -> None:
    """Start the server inside this process and say where it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--alias", default="tiny")
    parser.add_argument("--key", default="")
    parser.add_argument("--context", type=int, default=8192, help="context of each slot")
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.sampling.seed = SEED  # else an answer ends by chance before its limit, now and then
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if options.key:
        params.api_keys = [options.key]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
