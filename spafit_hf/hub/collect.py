"""Several adapters in a Collection, so that they are found together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from spafit_hf.hub.errors import FAILURES, HubError, explain
from spafit_hf.hub.push import _api
from spafit_hf.hub.retry import Patience, patiently

LONGEST_NOTE = 500


@dataclass(frozen=True)
class Collected:
    """A Collection and what is in it now."""

    slug: str
    url: str
    items: tuple[str, ...]


def collect_adapters(
    title: str,
    repo_ids: Sequence[str] | Mapping[str, str],
    *,
    namespace: str | None = None,
    description: str | None = None,
    private: bool = False,
    token: str | None = None,
    patience: Patience | None = None,
) -> Collected:
    """Put repos into a Collection. One with that title is used if it is there; what is in it already stays.

    Args:
        title: of the Collection.
        repo_ids: the repos; as a mapping, each with a note.
        namespace: user or organization that owns it; the token's own by default.
        description: for one that is made.
        private: whether one that is made is private.
        token: with write permission; by default the one that `hf auth login` stored.
        patience: as for `push_adapter`.

    Raises:
        HubError: with what to do; what was added before it stays.
    """
    waiting = Patience() if patience is None else patience
    notes = dict(repo_ids) if isinstance(repo_ids, Mapping) else dict.fromkeys(repo_ids, "")
    for repo_id, note in notes.items():
        if len(note) > LONGEST_NOTE:
            raise HubError(f"the note on {repo_id} has {len(note)} characters; the Hub takes {LONGEST_NOTE} at most.")
    api = _api(token)
    at = title
    try:
        kept = patiently(
            lambda: api.create_collection(
                title, namespace=namespace, description=description, private=private, exists_ok=True
            ),
            f"Creating the Collection {title!r}",
            waiting,
        )
        slug = kept.slug
        for at, note in notes.items():
            add = partial(api.add_collection_item, slug, at, "model", note=note or None, exists_ok=True)
            kept = patiently(add, f"Adding {at} to the Collection", waiting)
    except FAILURES as error:
        raise HubError(f"The Collection {title!r} is not complete: {explain(error, at)}") from error
    return Collected(kept.slug, kept.url, tuple(item.item_id for item in kept.items))
