import pathlib
import tempfile
import unittest

import environments


class Install(unittest.TestCase):
    def tried(self, peer, works):
        """The requirements that are tried when only some can be installed, and whether the peer is there then."""
        tried = []

        class Some(environments.Environments):
            def fill(self, peer, requirements):
                tried.append(requirements.name)
                return requirements.name in works

        with tempfile.TemporaryDirectory() as folder:
            there = Some(pathlib.Path(folder), "cpu", {}).install(peer)
        return tried, there

    def test_pytorch_comes_from_pypi_where_its_own_index_fails(self):
        tried, there = self.tried("PyTorch", {"torch.txt"})
        self.assertTrue(there)
        self.assertEqual(tried[-1], "torch.txt")

    def test_nothing_is_tried_after_what_works(self):
        tried, there = self.tried("PyTorch", {"torch.txt", "torch-linux-cpu.txt"})
        self.assertTrue(there)
        self.assertEqual(len(tried), 1)

    def test_a_peer_that_cannot_be_installed_is_missing(self):
        for peer in ("llama.cpp", "PyTorch", "MLX"):
            self.assertFalse(self.tried(peer, set())[1])


if __name__ == "__main__":
    unittest.main()
