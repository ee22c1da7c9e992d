"""The contract of every store: in memory, in a directory and on a real S3-compatible server."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import Conflict, DamagedBlob, InvalidInput, NotFound, PreconditionFailed
from shared.names import PromptReference
from shared.prompt.digest import digest_of
from shared.store import AliasMoved, AliasTarget, PromptStore, VersionDeleted, VersionPublished
from shared.store.base import ObjectBackend
from shared.store.layout import BLOBS, LOG, blob_key
from tests.shared.prompt.blobs import make_blob

PROMPT = "support-tone"


def publish(store: PromptStore, count: int, prompt: str = PROMPT, start: int = 0) -> None:
    for number in range(start, start + count):
        store.publish(prompt, make_blob(prompt, number), job=f"job-{number}")


class TestBackend:
    def test_create_only_writes_what_is_not_there(self, backend: ObjectBackend) -> None:
        assert backend.create("a/b/one", b"first")
        assert not backend.create("a/b/one", b"second")
        assert backend.get("a/b/one", 100) == b"first"

    def test_put_overwrites_and_delete_forgets(self, backend: ObjectBackend) -> None:
        backend.put("a/one", b"first")
        backend.put("a/one", b"second")
        assert backend.get("a/one", 100) == b"second"
        backend.delete("a/one")
        backend.delete("a/one")
        assert backend.get("a/one", 100) is None
        assert backend.head("a/one") is None

    def test_a_large_object_is_refused_before_it_is_read(self, backend: ObjectBackend) -> None:
        backend.put("large", b"x" * 101)
        with pytest.raises(DamagedBlob, match="101 bytes"):
            backend.get("large", 100)

    def test_list_is_one_folder_however_deep(self, backend: ObjectBackend) -> None:
        for key in ("log/2", "log/1", "log/deep/3", "logs/4", "other"):
            backend.put(key, b"12")
        infos = backend.list("log/")
        assert [info.key for info in infos] == ["log/1", "log/2", "log/deep/3"]
        assert {info.size_bytes for info in infos} == {2}
        assert abs(infos[0].modified_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert backend.list("nothing/") == []
        assert backend.head("log/1") == infos[0]

    @pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/", "a\0b", "./x", "a/\n"])
    def test_keys_never_leave_the_root(self, backend: ObjectBackend, key: str) -> None:
        acts = [
            lambda: backend.get(key, 1),
            lambda: backend.create(key, b""),
            lambda: backend.put(key, b""),
            lambda: backend.delete(key),
        ]
        for act in [*acts, lambda: backend.head(key)]:
            with pytest.raises(ValueError, match="not a store key"):
                act()

    def test_one_of_many_creators_wins(self, backend: ObjectBackend) -> None:
        won: list[int] = []
        barrier = threading.Barrier(8)

        def contend(number: int) -> None:
            barrier.wait()
            if backend.create("log/contended", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert backend.get("log/contended", 10) == str(won[0]).encode()


class TestPublish:
    def test_versions_count_from_one_and_the_revision_grows(self, store: PromptStore) -> None:
        first = store.publish(PROMPT, make_blob(seed=1), job="job-1", actor="trainer")
        second = store.publish(PROMPT, make_blob(seed=2), job="job-2")
        assert (first.version, first.revision, second.version, second.revision) == (1, 1, 2, 2)
        assert first.digest == digest_of(make_blob(seed=1))
        assert first.size_bytes == len(make_blob(seed=1))
        assert first.name == "prompts/support-tone/versions/1"
        assert (first.summary.num_virtual_tokens, first.summary.hidden_size, first.summary.base_model) == (4, 8, "tiny")
        assert first.metrics == {"loss": 0.5}
        assert store.index().resolve(PromptReference.parse(PROMPT)) == second

    def test_another_reader_sees_the_same(self, store: PromptStore, backend: ObjectBackend) -> None:
        publish(store, 3)
        store.set_alias(PROMPT, "canary", [AliasTarget(1, 9), AliasTarget(2, 1)])
        assert PromptStore(backend).index() == store.index()
        store.write_snapshot()
        assert PromptStore(backend).index() == store.index()

    def test_the_blob_comes_back_by_digest(self, store: PromptStore) -> None:
        record = store.publish(PROMPT, make_blob(), job="job")
        assert store.fetch(record.digest) == make_blob()

    def test_the_same_job_gets_the_version_it_has(self, store: PromptStore, backend: ObjectBackend) -> None:
        first = store.publish(PROMPT, make_blob(seed=1), job="job")
        again = PromptStore(backend).publish(PROMPT, make_blob(seed=2), job="job")
        assert again == first
        assert store.refresh().revision == 1

    def test_a_job_whose_version_was_deleted_does_not_publish_again(self, store: PromptStore) -> None:
        publish(store, 2)
        store.delete_version(PROMPT, 1)
        with pytest.raises(PreconditionFailed, match="deleted"):
            store.publish(PROMPT, make_blob(seed=0), job="job-0")

    def test_without_an_alias_nothing_moves(self, store: PromptStore) -> None:
        store.publish(PROMPT, make_blob(), job="job", alias=None)
        with pytest.raises(NotFound, match="support-tone@default"):
            store.index().resolve(PromptReference.parse(PROMPT))
        assert store.index().resolve(PromptReference.parse(f"{PROMPT}@1")).version == 1

    def test_a_stale_expectation_publishes_nothing(self, store: PromptStore) -> None:
        publish(store, 2)
        with pytest.raises(Conflict) as caught:
            store.publish(PROMPT, make_blob(seed=9), job="job-9", expected=1)
        assert caught.value.metadata["current"] == "2"
        assert store.refresh().revision == 2
        assert store.publish(PROMPT, make_blob(seed=9), job="job-9", expected=2).version == 3

    def test_expecting_no_alias(self, store: PromptStore) -> None:
        store.publish(PROMPT, make_blob(seed=1), job="job-1", expected=None)
        with pytest.raises(Conflict):
            store.publish(PROMPT, make_blob(seed=2), job="job-2", expected=None)

    @pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a" * 64, "a\n", "-a", "a.b", "ä"])
    def test_names_are_checked(self, store: PromptStore, name: str) -> None:
        with pytest.raises(InvalidInput, match="prompt"):
            store.publish(name, make_blob(), job="job")
        with pytest.raises(InvalidInput, match="alias"):
            store.publish(PROMPT, make_blob(), job="job", alias=name)

    def test_damaged_and_foreign_blobs_are_refused(self, store: PromptStore, backend: ObjectBackend) -> None:
        with pytest.raises(DamagedBlob):
            store.publish(PROMPT, make_blob()[:-1], job="job")
        with pytest.raises(InvalidInput, match="other"):
            store.publish(PROMPT, make_blob("other"), job="job")
        with pytest.raises(InvalidInput, match="job"):
            store.publish(PROMPT, make_blob(), job="")
        assert backend.list(BLOBS) == []
        assert store.refresh().revision == 0


class TestAliases:
    def test_compare_and_set(self, store: PromptStore) -> None:
        publish(store, 3)
        assert store.set_alias(PROMPT, "default", 1, expected=3) == 4
        with pytest.raises(Conflict) as caught:
            store.set_alias(PROMPT, "default", 2, expected=3)
        assert caught.value.metadata["current"] == "1"
        assert store.index().resolve(PromptReference.parse(PROMPT)).version == 1

    def test_setting_what_is_set_is_no_commit(self, store: PromptStore) -> None:
        publish(store, 1)
        assert store.set_alias(PROMPT, "default", 1, expected=1) == 1

    def test_removing_an_alias(self, store: PromptStore) -> None:
        publish(store, 1)
        store.set_alias(PROMPT, "default", None, expected=1)
        with pytest.raises(NotFound):
            store.index().resolve(PromptReference.parse(PROMPT))
        with pytest.raises(NotFound, match="support-tone@default"):
            store.set_alias(PROMPT, "default", None)

    def test_a_missing_prompt_or_version_is_named(self, store: PromptStore) -> None:
        with pytest.raises(NotFound, match="'support-tone'"):
            store.set_alias(PROMPT, "default", 1)
        publish(store, 1)
        with pytest.raises(NotFound, match="versions/2"):
            store.set_alias(PROMPT, "default", 2)
        with pytest.raises(NotFound, match="canary"):
            store.index().resolve(PromptReference.parse(f"{PROMPT}@canary"))

    def test_weighted_aliases_split_by_routing_key(self, store: PromptStore, backend: ObjectBackend) -> None:
        publish(store, 2)
        store.set_alias(PROMPT, "default", [AliasTarget(1, 90), AliasTarget(2, 10)], expected=2)
        reference = PromptReference.parse(PROMPT)
        keys = [f"user-{number}" for number in range(2000)]
        picked = {key: store.index().resolve(reference, key).version for key in keys}
        other_process = PromptStore(backend).index()
        assert picked == {key: other_process.resolve(reference, key).version for key in keys}
        assert 0.07 < Counter(picked.values())[2] / len(keys) < 0.13

        store.set_alias(PROMPT, "default", [AliasTarget(2, 30), AliasTarget(1, 70)])
        widened = {key: store.index().resolve(reference, key).version for key in keys}
        assert 0.26 < Counter(widened.values())[2] / len(keys) < 0.34
        assert all(widened[key] == 2 for key, version in picked.items() if version == 2), (
            "a canary's users stay with it when it grows"
        )

    @pytest.mark.parametrize(
        "targets", [[], [AliasTarget(1, 0)], [AliasTarget(1, 1), AliasTarget(1, 2)], [AliasTarget(1, 10**9)], 0]
    )
    def test_bad_targets(self, store: PromptStore, targets: list[AliasTarget] | int) -> None:
        publish(store, 1)
        with pytest.raises((InvalidInput, NotFound)):
            store.set_alias(PROMPT, "canary", targets)


class TestDeletion:
    def test_never_one_that_an_alias_names(self, store: PromptStore) -> None:
        publish(store, 2)
        store.set_alias(PROMPT, "canary", [AliasTarget(1), AliasTarget(2)])
        with pytest.raises(PreconditionFailed, match="support-tone@canary"):
            store.delete_version(PROMPT, 1)
        store.set_alias(PROMPT, "canary", 2)
        store.delete_version(PROMPT, 1)
        with pytest.raises(NotFound, match="versions/1"):
            store.index().resolve(PromptReference.parse(f"{PROMPT}@1"))
        with pytest.raises(NotFound):
            store.delete_version(PROMPT, 1)

    def test_numbers_are_not_used_again(self, store: PromptStore, backend: ObjectBackend) -> None:
        publish(store, 2)
        store.set_alias(PROMPT, "default", None)
        store.delete_version(PROMPT, 2)
        store.delete_version(PROMPT, 1)
        assert store.index().list_prompts() == []
        store.write_snapshot()
        assert PromptStore(backend).publish(PROMPT, make_blob(seed=9), job="job-9").version == 3

    def test_retention_keeps_the_newest_and_the_aliased(self, store: PromptStore) -> None:
        publish(store, 6)
        store.set_alias(PROMPT, "stable", 2)
        before = store.index().revision
        assert store.apply_retention(PROMPT, keep_last=2) == [1, 3, 4]
        assert store.index().revision == before + 1
        assert sorted(store.index().prompt(PROMPT).versions) == [2, 5, 6]
        assert store.apply_retention(PROMPT, keep_last=2) == []
        with pytest.raises(InvalidInput, match="keep_last"):
            store.apply_retention(PROMPT, keep_last=0)

    def test_blobs_go_when_no_version_names_them(self, store: PromptStore, backend: ObjectBackend) -> None:
        publish(store, 2)
        gone = store.index().prompt(PROMPT).versions[1].digest
        kept = store.index().prompt(PROMPT).versions[2].digest
        orphan = digest_of(b"an upload whose publisher died")
        backend.create(blob_key(orphan), b"an upload whose publisher died")
        backend.put(f"{BLOBS}zz/stray-file", b"not ours")
        store.delete_version(PROMPT, 1)
        assert store.collect_unreferenced_blobs() == [], "nothing has been unwanted for a day"
        assert store.fetch(gone) == make_blob(seed=0)
        assert set(store.collect_unreferenced_blobs(grace_seconds=-1)) == {gone, orphan}
        assert store.fetch(kept) == make_blob(seed=1)
        with pytest.raises(NotFound, match="blob"):
            store.fetch(gone)


class TestChanges:
    def test_commits_in_order_after_a_revision(self, store: PromptStore, backend: ObjectBackend) -> None:
        publish(store, 2)
        store.set_alias(PROMPT, "default", 1, actor="ada")
        store.delete_version(PROMPT, 2)
        for reader in (store, PromptStore(backend)):
            changes = reader.changes_since(1)
            assert [commit.revision for commit in changes.commits] == [2, 3, 4]
            assert not changes.restarted
            kinds = [[type(op) for op in commit.ops] for commit in changes.commits]
            assert kinds == [[VersionPublished, AliasMoved], [AliasMoved], [VersionDeleted]]
            assert changes.commits[1].actor == "ada"
            assert reader.changes_since(4).commits == ()
            assert changes.index.revision == 4

    def test_the_present_state(self, store: PromptStore) -> None:
        publish(store, 1)
        changes = store.changes_since(None)
        assert (changes.restarted, changes.commits, changes.index.revision) == (True, (), 1)
        assert store.changes_since(99).restarted, "a revision that this store has not reached is another store's"

    def test_a_reader_follows_a_writer(self, store: PromptStore, backend: ObjectBackend) -> None:
        reader = PromptStore(backend)
        for number in range(3):
            publish(store, 1, start=number)
            assert reader.index().revision == number
            assert reader.refresh().prompt(PROMPT).latest_version == number + 1

    def test_truncation_is_noticed_only_by_those_far_behind(self, store: PromptStore, backend: ObjectBackend) -> None:
        far_behind, close = PromptStore(backend), PromptStore(backend)
        publish(store, 6)
        close.refresh()
        publish(store, 2, start=6)
        assert store.truncate_log(keep=3) == 5
        assert store.truncate_log(keep=3) == 0
        assert len(backend.list(LOG)) == 3
        assert [commit.revision for commit in close.changes_since(6).commits] == [7, 8]
        fresh = PromptStore(backend)
        assert fresh.index() == store.index()
        assert fresh.changes_since(2).restarted
        assert [commit.revision for commit in fresh.changes_since(5).commits] == [6, 7, 8]
        publish(far_behind, 1, start=8)
        assert far_behind.index().prompt(PROMPT).latest_version == 9
        assert close.refresh() == far_behind.refresh() == store.refresh()

    def test_pages(self, store: PromptStore) -> None:
        for prompt in ("b", "a", "c"):
            publish(store, 2, prompt)
        index = store.index()
        assert [prompt.name for prompt in index.list_prompts(limit=2)] == ["a", "b"]
        assert [prompt.name for prompt in index.list_prompts(after="b", limit=2)] == ["c"]
        assert [record.version for record in index.list_versions("a", limit=1)] == [2]
        assert [record.version for record in index.list_versions("a", below=2)] == [1]
        with pytest.raises(NotFound, match="'d'"):
            index.list_versions("d")


def test_bytes_that_are_not_what_the_digest_says(store: PromptStore, backend: ObjectBackend) -> None:
    record = store.publish(PROMPT, make_blob(), job="job")
    backend.put(blob_key(record.digest), make_blob(seed=1))
    with pytest.raises(DamagedBlob, match=record.digest):
        store.fetch(record.digest)
    store.publish(PROMPT, make_blob(), job="again")
    assert store.fetch(record.digest) == make_blob(), "publishing the same bytes again heals them"


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../x", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "md5:" + "0" * 64]
)
def test_digests_are_checked_before_they_become_paths(store: PromptStore, digest: str) -> None:
    with pytest.raises(InvalidInput, match="digest"):
        store.fetch(digest)
