"""POST /tokenize and /detokenize."""
from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..body import read_body
from ..conversation import prompt_ids
from ..errors import Refused
from ..protocol.base import parse
from ..protocol.tokens import DetokenizeForm, TokenizeForm
from ..service import Service


class Tokens:
    """Text to token ids and back, as the model's own prompts are made."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def tokenize(self, request: Request) -> JSONResponse:
        body = await read_body(request, self.service.config)
        return JSONResponse(await asyncio.to_thread(self._tokenize, body))

    async def detokenize(self, request: Request) -> JSONResponse:
        body = await read_body(request, self.service.config)
        return JSONResponse(await asyncio.to_thread(self._detokenize, body))

    def _tokenize(self, body: bytes) -> dict[str, Any]:
        form = parse(TokenizeForm, body)
        self.service.check_model(form.model)
        if (form.prompt is None) == (form.messages is None):
            raise Refused(400, "either prompt or messages is needed", code="missing_required_parameter", param="prompt")
        if form.messages is not None:
            ids = prompt_ids(self.service, form.messages, form.tools, add_generation_prompt=form.add_generation_prompt,
                             variables=form.chat_template_kwargs)
        else:
            ids = self.service.tokenizer.encode(form.prompt or "", form.add_special_tokens)
        tokens = [self.service.tokenizer.decode([one], skip_special_tokens=False) for one in ids] if form.return_token_strs else None
        return {"count": len(ids), "max_model_len": self.service.max_model_len, "tokens": ids, "token_strs": tokens}

    def _detokenize(self, body: bytes) -> dict[str, Any]:
        form = parse(DetokenizeForm, body)
        self.service.check_model(form.model)
        return {"prompt": self.service.tokenizer.decode(form.tokens, skip_special_tokens=False)}
