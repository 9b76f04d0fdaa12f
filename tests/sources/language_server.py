"""A small language model that speaks the protocols of vLLM and SGLang on the loopback address."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
import time

import numpy as np
import torch


class LanguageServer(http.server.ThreadingHTTPServer):
    """`faults[i]` is what goes wrong with the i-th request: see `HandlerOf`.

    Attributes:
      asked: the bodies of the requests.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, model, faults=(), most=64, key=None) -> None:
        super().__init__(("127.0.0.1", 0), HandlerOf)
        self.model, self.most, self.key = model.eval(), most, key
        self.faults, self.asked, self.lock = list(faults), [], threading.Lock()
        self.at_once = self.most_at_once = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        pass

    def log_probs(self, tokens):
        """`[tokens, vocab]`: row j is about token j + 1."""
        with torch.no_grad(), self.lock:
            z = self.model(input_ids=torch.tensor([tokens])).logits[0]
        return torch.log_softmax(z.double(), -1)


class HandlerOf(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.admitted():
            return
        names = {"object": "list", "data": [{"id": "big", "max_model_len": 64}, {"id": "other"}]}
        self.say(200, names if self.path == "/v1/models" else {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.admitted():
            return
        server = self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.asked.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            if isinstance(fault, float):
                time.sleep(fault)
            answers = {
                "/v1/completions": self.completions,
                "/inference/v1/generate": self.scored,
                "/generate": self.generate,
            }
            status, answer = answers[self.path](body)
            if callable(fault):
                answer = fault(answer)
            if isinstance(fault, int):
                status, answer = fault, {"error": {"message": "overloaded", "code": fault}}
        finally:
            with server.lock:  # before the answer, after which the next request may come
                server.at_once -= 1
        self.say(status, answer)

    def admitted(self) -> bool:
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self.say(401, {"error": "Unauthorized"})
        return False

    def completions(self, body):
        """vLLM: entry j is about token j, top k and the token itself; the first is null."""
        k, tokens = body["prompt_logprobs"], body["prompt"]
        if k > self.server.most:
            words = f"Requested prompt logprobs of {k}, which is greater than max allowed"
            return 400, {"error": {"message": words, "type": "BadRequestError", "code": 400}}
        log_probs = self.server.log_probs(tokens)
        places = [None]
        for row, token in zip(log_probs[:-1], tokens[1:], strict=True):
            top, ids = row.topk(k)
            place = {
                str(int(i)): {"logprob": float(x), "rank": r + 1, "decoded_token": "t"}
                for r, (x, i) in enumerate(zip(top, ids, strict=True))
            }
            rank = int((row > row[token]).sum()) + 1
            own = {"logprob": float(row[token]), "rank": rank, "decoded_token": "t"}
            places.append({str(token): own, **place})
        choice = {"index": 0, "text": "t", "finish_reason": "length", "prompt_logprobs": places}
        return 200, {"id": "cmpl-0", "model": body["model"], "choices": [choice]}

    def scored(self, body):
        """vLLM's exact form: a matrix of float32 in `.npy`, in base64."""
        tokens, asked = body["token_ids"], body["sampling_params"]
        rows = self.server.log_probs(tokens)[asked["prompt_logprob_start"] : -1]
        ids = torch.tensor(asked["prompt_logprob_token_ids"])
        file = io.BytesIO()
        np.save(file, rows.gather(-1, ids).float().numpy())
        encoded = base64.b64encode(file.getvalue()).decode()
        choices = [{"index": 0, "token_ids": [0], "finish_reason": "length"}]
        return 200, {"choices": choices, "prompt_token_id_logprobs": encoded}

    def generate(self, body):
        """SGLang: triples of log-probability, id and text; the first of the input has none."""
        tokens = body["input_ids"]
        rows = self.server.log_probs(tokens)
        sent = [[None, tokens[0], None]] + [
            [float(row[token]), token, None] for row, token in zip(rows, tokens[1:], strict=False)
        ]
        about = {"prompt_tokens": len(tokens), "input_token_logprobs": sent}
        if "token_ids_logprob" in body:
            ids = body["token_ids_logprob"]
            about["input_token_ids_logprobs"] = [None] + [
                [[float(row[i]), i, None] for i in ids] for row in rows[:-1]
            ]
        if body.get("top_logprobs_num"):
            about["input_top_logprobs"] = [None] + [
                [[float(x), int(i), None] for x, i in zip(*row.topk(body["top_logprobs_num"]),
                                                          strict=True)] for row in rows[:-1]
            ]  # fmt: skip
        return 200, {"text": "t", "output_ids": [0], "meta_info": about}

    def say(self, status: int, answer) -> None:
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format, *args) -> None:
        pass
