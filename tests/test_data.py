"Finding and fetching recordings: a server that is whole, wrong, cut off or absent."

import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import soundfile

from metakd.data import audiovision
from metakd.files import MetakdError


@pytest.fixture
def server(tmp_path, monkeypatch):
    "Four recordings on a local server, and a manifest of them."
    folder = tmp_path / "server"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        soundfile.write(folder / f"{k}_theo_0.wav", rng.uniform(-0.5, 0.5, 4000), 8000)
    listed = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.wav"))}
    monkeypatch.setattr(audiovision, "manifest", lambda: listed)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            self.server.tested.append(self.path)

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    httpd.tested, httpd.folder = [], folder
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


def url(server):
    return f"http://127.0.0.1:{server.server_port}/"


def test_download_checks_every_file_and_never_fetches_twice(server, tmp_path):
    folder = audiovision.download(tmp_path / "cache", url(server))
    assert [p.name for p in audiovision.wav_files(folder)] == [f"{k}_theo_0.wav" for k in range(4)]
    audiovision.check_recordings(audiovision.wav_files(folder))
    asked = len(server.tested)
    audiovision.download(tmp_path / "cache", url(server))
    assert len(server.tested) == asked


def test_download_refuses_a_file_that_differs(server, tmp_path):
    (server.folder / "2_theo_0.wav").write_bytes(b"something else")
    with pytest.raises(MetakdError, match="broke off after .* of 4 recordings"):
        audiovision.download(tmp_path / "cache", url(server))
    assert not (tmp_path / "cache" / "recordings" / "2_theo_0.wav").exists()


def test_download_continues_after_a_cut(server, tmp_path):
    whole = (server.folder / "3_theo_0.wav").read_bytes()
    (server.folder / "3_theo_0.wav").unlink()
    with pytest.raises(MetakdError, match="run it again"):
        audiovision.download(tmp_path / "cache", url(server))
    (server.folder / "3_theo_0.wav").write_bytes(whole)
    folder = audiovision.download(tmp_path / "cache", url(server))
    audiovision.check_recordings(audiovision.wav_files(folder))


def test_a_checksum_that_differs_names_the_file(server):
    (server.folder / "1_theo_0.wav").write_bytes(b"RIFF not what it was")
    with pytest.raises(MetakdError, match="1_theo_0.wav: checksum .* differs"):
        audiovision.check_recordings(sorted(server.folder.glob("*.wav")))


def test_without_network_it_says_so_in_one_line_and_synthesises(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("METAKD_DATA", raising=False)
    monkeypatch.setenv("METAKD_CACHE", str(tmp_path))
    monkeypatch.setattr(audiovision, "download", functools.partial(audiovision.download, url="http://127.0.0.1:9/"))
    monkeypatch.setattr(audiovision, "TAKES", 2)
    folder, source = audiovision.find_recordings()
    said = capsys.readouterr().out.strip().splitlines()
    assert source == "espeak" and len(said) == 1 and "synthesised by eSpeak NG" in said[0]
    data = audiovision.load("standard")
    assert data.source == "espeak" and len(data.y) == 10 * 6 * 2 and data.x["audio"].isfinite().all()
    assert audiovision.find_recordings()[0] == folder  # written once, found again
    with pytest.raises(MetakdError, match="set METAKD_DATA"):
        audiovision.find_recordings(source="fsdd")


def test_a_named_folder_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("METAKD_DATA", str(tmp_path))
    (tmp_path / "fsdd").mkdir()
    assert audiovision.find_recordings(tmp_path / "mine") == (tmp_path / "mine", "fsdd")
    assert audiovision.find_recordings() == (tmp_path / "fsdd", "fsdd")


def test_a_folder_with_a_misnamed_file(tmp_path):
    soundfile.write(tmp_path / "seven.wav", np.ones(100) * 0.1, 8000)
    with pytest.raises(MetakdError, match="seven.wav: not a recording's name"):
        audiovision.load(path=tmp_path)


def test_features_of_a_folder_with_a_broken_recording(tmp_path, monkeypatch):
    monkeypatch.setenv("METAKD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    for k in range(10):
        soundfile.write(folder / f"{k}_me_0.wav", np.random.default_rng(k).uniform(-1, 1, 3000), 8000)
    (folder / "4_me_0.wav").write_bytes(b"")
    with pytest.raises(MetakdError, match="4_me_0.wav: not a readable WAV"):
        audiovision.load(path=folder)
    assert not list((tmp_path / "cache").glob("mfcc*"))
