"""`python3 -m unittest discover -s benches/peers`: what needs no peer."""
import contextlib
import io
import json
import pathlib
import tempfile
import types
import unittest

import comparisons
import environments
import results
import suite


def options(**other):
    chosen = {"device": "cpu", "shape": "qwen2.5-0.5b", "threads": 2, "rounds": 2, "repetitions": 1, "append": False, "json": None}
    return types.SimpleNamespace(**chosen | {"peers": environments.PEERS} | other)


class Comparing(unittest.TestCase):
    def test_a_round_without_one_of_both_is_not_counted(self):
        ours, peer = "metal-candle bf16", "llama.cpp bf16"
        rows = [{ours: {"decode": 60.0}, peer: {"decode": 50.0}}, {ours: {"decode": 61.0}}, {ours: {"decode": None}, peer: {"decode": 49.0}}]
        found = results.Results(options())
        found.add(rows, "decode", "shape", (ours, peer), "decode", "tok/s", "higher")
        (entry,) = found.whole["rounds"]
        self.assertEqual(entry["pairs"], [[60.0, 50.0]])
        self.assertEqual(entry["bar"], 1.25)

    def test_bars_name_programs_that_are_measured(self):
        for device, bars in comparisons.BARS.items():
            programs = comparisons.inference_programs(device, slow=False)
            for case in comparisons.TRAIN_CASES[device]:
                programs += comparisons.training_programs(device, case, slow=False)
            names = {program.name for program in programs}
            for what, ours, peer in bars:
                self.assertLessEqual({ours, peer}, names, what)

    def test_every_peer_stands_beside_a_program_of_ours(self):
        for device in comparisons.BARS:
            for programs in (comparisons.inference_programs(device, slow=True), comparisons.training_programs(device, "1x512", slow=True)):
                ours = {program.name for program in programs if program.peer is None}
                for program in programs:
                    self.assertEqual(program.beside in ours, program.peer is not None, program.name)

    def test_ours_are_measured_side_by_side_and_on_a_gpu_first(self):
        def names(device):
            return [program.name for program in comparisons.inference_programs(device, slow=True)]

        self.assertEqual(names("cuda")[0], "metal-candle bf16")
        self.assertEqual(names("cuda")[-1], "PyTorch compiled bf16")
        self.assertEqual(names("cpu").index("metal-candle f32"), names("cpu").index("metal-candle bf16") + 1)

    def test_a_bar_is_of_how_many_times_better_ours_is(self):
        def said(pairs, better):
            return results.verdict({"bar": 2.0, "better": better, "pairs": pairs})

        self.assertEqual(said([[40.0, 100.0], [50.0, 100.0]], "lower"), "2.00: holds")
        self.assertEqual(said([[40.0, 100.0], [50.0, 100.0]], "higher"), "2.00: **missed**")
        self.assertEqual(said([[30.0, 10.0], [10.0, 10.0], [20.0, 10.0]], "higher"), "2.00: holds by the median")


class Appending(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "peers.json"

    def measure(self, peer, ours, theirs, **other):
        found = results.Results(options(json=self.file, append=True, **other))
        row = {"metal-candle f32": {"decode": ours}, f"{peer} f32": {"decode": theirs}}
        found.add([row], "decode", "shape", tuple(row), "decode", "tok/s", "higher")
        found.found("inference", f"{peer} f32", peer, "1.0")
        found.save()
        return json.loads(self.file.read_text())

    def test_portions_make_one_file_and_the_newest_counts(self):
        self.measure("PyTorch", 10.0, 5.0)
        self.measure("llama.cpp", 11.0, 6.0)
        whole = self.measure("PyTorch", 12.0, 7.0)
        self.assertEqual({entry["peer"]: entry["pairs"] for entry in whole["rounds"]}, {"llama.cpp f32": [[11.0, 6.0]], "PyTorch f32": [[12.0, 7.0]]})
        statuses = {peer["name"]: peer["status"].split(":")[0] for peer in whole["peers"]}
        self.assertEqual(statuses, {"llama.cpp": "measured", "PyTorch": "measured", "MLX": "missing", "candle": "missing"})

    def test_what_was_measured_otherwise_is_refused(self):
        self.measure("PyTorch", 10.0, 5.0)
        with self.assertRaisesRegex(SystemExit, "threads was 2 and is 4"):
            self.measure("PyTorch", 10.0, 5.0, threads=4)

    def test_what_was_left_out_once_and_is_measured_now_is_forgotten(self):
        found = results.Results(options(json=self.file))
        found.leave_out("inference", "PyTorch f32", "not installed", "PyTorch")
        found.save()
        self.assertIn("not installed", json.loads(self.file.read_text())["peers"][1]["status"])
        whole = self.measure("PyTorch", 10.0, 5.0)
        self.assertEqual(whole["left_out"], [])


class Arguments(unittest.TestCase):
    def test_a_python_needs_a_peer_and_a_path(self):
        self.assertEqual(suite.named_path("PyTorch=/usr/bin/python3"), ("PyTorch", "/usr/bin/python3"))
        for wrong in ("PyTorch", "PyTorch="):
            with self.assertRaises(Exception):
                suite.named_path(wrong)

    def test_an_unknown_program_to_leave_out_is_refused_with_the_known_ones(self):
        for device, name in (("cpu", "PyTorch compiled bf16"), ("cuda", "mlx-lm bf16"), ("cpu", "MLX f32")):
            self.assertEqual(suite.arguments(["--device", device, "--without", name]).without, [name])
        said = io.StringIO()
        with self.assertRaises(SystemExit), contextlib.redirect_stderr(said):
            suite.arguments(["--device", "cuda", "--without", "PyTorch compiled"])
        self.assertRegex(said.getvalue(), "unknown: PyTorch compiled; known: metal-candle bf16, llama.cpp bf16, PyTorch bf16, MLX bf16")

    def test_an_unknown_peer_is_named(self):
        with self.assertRaisesRegex(SystemExit, "torch"):
            environments.Environments(pathlib.Path("/nowhere"), "cpu", {"torch": "python3"})

    def test_a_python_that_was_named_once_is_remembered(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            environments.Environments(folder, "cpu", {"PyTorch": "/some/python"}).remember()
            self.assertEqual(environments.Environments(folder, "cpu", {}).python("PyTorch"), "/some/python")
            self.assertEqual(environments.Environments(folder, "cpu", {"PyTorch": "/other"}).python("PyTorch"), "/other")

    def test_a_missing_peer_says_what_to_do(self):
        places = environments.Environments(pathlib.Path("/nowhere"), "cpu", {})
        for peer, worker in (("MLX", "mlx_models.py"), ("candle", "plain-candle")):
            with self.assertRaisesRegex(environments.Missing, f"--install-peers {peer}"):
                places.command(peer, worker)


if __name__ == "__main__":
    unittest.main()
