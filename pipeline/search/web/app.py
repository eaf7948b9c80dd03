"""The addresses of the server.

    /                               the page; page.js, page.css
    /api/gallery                    parts, cameras and folders
    /api/rows                       pictures in order
    /api/rows/N/picture, parts      a picture of the gallery, its label map
    /api/queries                    POST of a picture's bytes: a name for it
    /api/queries/NAME/picture, parts
    /api/nearest                    the nearest to ?row=N or ?query=NAME; with &form=json or csv, a file

A refusal is JSON: `{"error": words}`.
"""

import csv
import io
from asyncio import Semaphore
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipeline.core.params import BadInput
from pipeline.inference.api import Map
from pipeline.search.web.guard import Guard, Json, refusal
from pipeline.search.web.service import Choice, Service, map_png
from pipeline.search.web.upload import Refused, decode_upload, read_body

FOLDER = Path(__file__).parent / "page"
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
MOST, MOST_OFFSET = 1000, 10_000_000  # pictures of an answer; 2**63 is no row
THREADS, UPLOADS = 16, 4  # that answer; uploads in memory at a time
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one
COLUMNS = ("rank", "distance", "name", "folder", "camera", "parts")

Offset = Annotated[int, Query(ge=0, le=MOST_OFFSET)]
Top = Annotated[int, Query(ge=1, le=MOST)]


def create(service: Service, names: set[str]) -> Guard:
    """The application, behind its checks; `names` are the host names of the server."""
    app = FastAPI(openapi_url=None, lifespan=_lifespan)  # whose documentation is a page of scripts of others
    _add_page(app)
    _add_errors(app)
    _add_pictures(app, service)
    _add_searches(app, service)
    return Guard(app, names)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def _add_page(app: FastAPI) -> None:
    for address, (name, kind) in PAGE.items():
        answer = partial(Response, (FOLDER / name).read_bytes(), media_type=kind)
        app.router.add_route(address, _constant(answer))
    app.router.add_route("/favicon.ico", _constant(partial(Response, status_code=204)))


def _constant(answer: Callable[[], Response]) -> Callable[[Request], Response]:
    return lambda request: answer()


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Json:
        return refusal(error.status, str(error))

    @app.exception_handler(BadInput)
    def bad_input(request: Request, error: BadInput) -> Json:
        return refusal(400, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Json:
        faults = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
        return refusal(400, f"{'; '.join(faults)}.")

    @app.exception_handler(HTTPException)
    def not_there(request: Request, error: HTTPException) -> Json:
        return refusal(error.status_code, f"{request.url.path}: {error.detail}.")

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Json:
        return refusal(500, "The server failed; its terminal says why.")


def _add_pictures(app: FastAPI, service: Service) -> None:
    @app.get("/api/rows/{row}/picture")
    def picture(row: int, size: Literal["small", "large"] = "small") -> Response:
        return Response(service.picture(row, size), media_type="image/jpeg")

    @app.get("/api/rows/{row}/parts")
    def row_parts(row: int) -> Response:
        return _map(service.gallery.map(service.row(row)))

    @app.get("/api/queries/{name}/picture")
    def query_picture(name: str) -> Response:
        return Response(service.query(name).picture, media_type="image/jpeg")

    @app.get("/api/queries/{name}/parts")
    def query_parts(name: str) -> Response:
        return _map(service.query(name).map)


def _map(labels: Map | None) -> Response:
    if labels is None:
        raise Refused(404, "The gallery has no label maps. Index it with --maps.")
    return Response(map_png(labels), media_type="image/png")


def _add_searches(app: FastAPI, service: Service) -> None:
    uploads = Semaphore(UPLOADS)

    @app.get("/api/gallery")
    def gallery() -> Response:
        return Json(service.describe())

    @app.get("/api/rows")
    def rows(camera: str | None = None, folder: str = "", offset: Offset = 0, top: Top = 20) -> Response:
        return Json(service.browse(Choice(camera, folder), offset, top))

    @app.post("/api/queries")
    async def upload(request: Request) -> Response:
        async with uploads:
            data = await read_body(request)
            name = await run_in_threadpool(lambda: service.remember(decode_upload(data)))
        return Json({"query": name})

    @app.get("/api/nearest")
    def nearest(
        row: int | None = None,
        query: str | None = None,
        camera: str | None = None,
        folder: str = "",
        part: Annotated[list[str] | None, Query()] = None,
        rerank: bool = False,
        offset: Offset = 0,
        top: Top = 20,
        form: Literal["json", "csv"] | None = None,
    ) -> Response:
        source: str | int | None = query if row is None else row
        if source is None or (query is not None and row is not None):
            raise Refused(400, "Give row, the number of a picture, or query, the name of an upload.")
        result = service.nearest(source, Choice(camera, folder), part, rerank, offset, top)
        answer = csv_table(result["hits"]) if form == "csv" else Json(result)
        if form:
            answer.headers["Content-Disposition"] = f'attachment; filename="nearest.{form}"'
        return answer


def csv_table(hits: list[dict]) -> Response:
    """Hits as a CSV file; a text that a spreadsheet would take for a formula has an apostrophe before it."""
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(COLUMNS)
    for hit in hits:
        values = {
            **hit,
            "parts": " + ".join(hit["parts"]),
            "distance": "" if hit["distance"] is None else hit["distance"],
        }
        table.writerow([_cell(values[column]) for column in COLUMNS])
    return Response(out.getvalue().encode("utf-8", "surrogateescape"), media_type="text/csv")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
