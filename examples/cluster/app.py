"""FastInference on Ray Serve: several runners behind one address, requests that begin alike on the same one.

    pip install 'ray[serve]'
    FASTRUN_BUNDLE=/models/model.fib serve run app:app

Each replica of Runner is a `fastrun serve` of its own; Gateway sends requests on to them. Settings are environment variables:
FASTRUN_BUNDLE, FASTRUN_BINARY, REPLICAS, THREADS (of each runner), ONGOING (requests of a runner before others help out).
"""

import asyncio
import os
import subprocess

import aiohttp
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter
from starlette.requests import Request
from starlette.responses import StreamingResponse

import affinity

REPLICAS = int(os.environ.get('REPLICAS', 2))
THREADS = int(os.environ.get('THREADS', 1))
ONGOING = int(os.environ.get('ONGOING', 32))


class PrefixRouter(RequestRouter):
    """Ranks replicas by affinity to a request's prefix: Serve takes the first that has room."""

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        prefix = pending_request.kwargs.get('prefix') if pending_request else None
        if not prefix:
            # Nothing to share: whoever has least to do, which Serve finds out.
            return [list(by_id.values())]
        return [[by_id[name]] for name in affinity.order(prefix, by_id)]


@serve.deployment(
    num_replicas=REPLICAS,
    max_ongoing_requests=ONGOING,
    graceful_shutdown_timeout_s=40,
    ray_actor_options={'num_cpus': THREADS},
    request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
)
class Runner:
    """One `fastrun serve`, on a port of its own."""

    def __init__(self, bundle):
        binary = os.environ.get('FASTRUN_BINARY', 'fastrun')
        command = [binary, 'serve', bundle, '--port', '0', '--threads', str(THREADS), '--model', 'model']
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith('listening at '):
            raise RuntimeError(f'fastrun did not start: exit code {self.process.wait()}')
        self.url = line.removeprefix('listening at ').strip()
        self.session = None

    async def check_health(self):
        if self.process.poll() is not None:
            raise RuntimeError(f'fastrun has ended with exit code {self.process.returncode}')
        async with (await self.client()).get(self.url + '/health/live', timeout=aiohttp.ClientTimeout(total=20)) as response:
            response.raise_for_status()

    async def client(self):
        # It belongs to the loop that requests run on.
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        return self.session

    async def forward(self, method, path, headers, body, prefix=''):
        """Status and headers of the runner's answer, then its bytes as they come. Closing it ends the request."""
        client = await self.client()
        async with client.request(method, self.url + path, headers=headers, data=body) as response:
            kept = {k: v for k, v in response.headers.items() if k.lower() in ('content-type', 'retry-after', 'www-authenticate')}
            yield response.status, {**kept, 'x-runner': str(self.process.pid)}
            async for piece in response.content.iter_any():
                yield piece

    async def __del__(self):
        # It lets running requests end.
        self.process.terminate()
        if self.session:
            await self.session.close()
        await asyncio.to_thread(self.process.wait)


@serve.deployment(max_ongoing_requests=1024)
class Gateway:
    """Finds out where a request belongs, and streams what comes back."""

    def __init__(self, runners):
        self.runners = runners.options(stream=True)

    async def __call__(self, request: Request):
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k in ('authorization', 'content-type')}
        path = request.url.path
        pieces = self.runners.forward.remote(request.method, path, headers, body, prefix=affinity.prefix(path, body))
        status, headers = await anext(pieces)
        return StreamingResponse(pieces, status, headers)


app = Gateway.bind(Runner.bind(os.path.abspath(os.environ.get('FASTRUN_BUNDLE', 'model.fib'))))
