"""The parts of validation/ that need no library: which recipes there are, what is said of a load, and the table.

    validation_test.py SOURCE_FOLDER
"""

import pathlib
import sys
import unittest

SOURCE = pathlib.Path(sys.argv.pop())
sys.path.insert(0, str(SOURCE / "validation"))
import kinds  # noqa: E402: after the path


class KindsTest(unittest.TestCase):
    def test_every_grid_of_every_width_and_group_is_there_once(self):
        recipes = kinds.recipes()
        self.assertEqual(len({recipe["name"] for recipe in recipes}), len(recipes))
        grids = {(r["bits"], r["group_size"], r["symmetric"]) for r in recipes if r["method"] == "rtn"}
        self.assertEqual(len(grids), 4 * 3 * 2 + 3 * 2)  # 5, 6 and 7 bits in one size of groups
        self.assertEqual({r["method"] for r in recipes}, {"rtn", "gptq", "awq", "signround", "llm-mq", "squeezellm"})
        self.assertEqual({r["act_order"] for r in recipes if "act_order" in r}, {"static", "none", "dynamic"})

    def test_a_recipe_is_yaml(self):
        recipe = {"method": "rtn", "bits": 4, "symmetric": True, "name": "a"}
        self.assertEqual(kinds.yaml_of(recipe), "{method: rtn, bits: 4, symmetric: true, name: a}")
        self.assertEqual(kinds.yaml_of({"gradients": {"samples": 8}, "sparse": False}), "{gradients: {samples: 8}, sparse: false}")
        self.assertEqual(kinds.yaml_of({"overrides": [{"match": '"*"', "skip": True}]}), '{overrides: [{match: "*", skip: true}]}')

    def test_sparse_parts_and_tables_are_dense_only(self):
        names = {recipe["name"]: [form for form in kinds.FORMATS if kinds.holds(form, recipe)] for recipe in kinds.recipes()}
        self.assertEqual(names["llm-mq-w3.0-g128-sym-fused"], ["compressed-tensors", "gptq", "dense"])
        self.assertEqual(names["llm-mq-w2.4-g128-asym-sparse"], ["dense"])
        self.assertEqual(names["squeezellm-w3-sparse"], ["dense"])
        self.assertEqual(names["rtn-w6-g128-sym"], ["compressed-tensors", "dense"])
        self.assertEqual(names["rtn-w4-g128-sym-down_proj-w8"], ["compressed-tensors", "gptq", "dense"])
        self.assertEqual(names["rtn-w4-g128-sym-model-layers-0-skipped"], kinds.FORMATS)

    def test_same_is_what_computes_what_we_compute(self):
        self.assertEqual(kinds.verdict({"perplexity": 2.001, "logits": 0.001}, 2.0)[0], "same")
        self.assertEqual(kinds.verdict({"perplexity": 2.01, "logits": 0.001}, 2.0)[0], "differs")
        self.assertEqual(kinds.verdict({"perplexity": 2.0, "logits": 0.01}, 2.0)[0], "differs")
        nan = float("nan")
        self.assertEqual(kinds.verdict({"perplexity": nan, "logits": 0.0}, 2.0)[0], "differs")
        self.assertEqual(kinds.verdict({"perplexity": 2.0, "logits": nan}, 2.0)[0], "differs")

    def test_a_refusal_keeps_its_message_but_no_paths(self):
        word, why = kinds.verdict({"error": "ValueError: /tmp/a/b/c.py:\n\x1b[1mno | at 0x7f0011223344"}, 2.0)
        self.assertEqual((word, why), ("refused", "ValueError: .../c.py: no / at 0x..."))
        self.assertEqual(len(kinds.one_line("x" * 1000)), 300)
        self.assertEqual(kinds.one_line("model.layers.{0, 1}.mlp.up_proj.weight_zero_point | MISMATCH | torch.Size([96, 2])"),
                         "weight_zero_point / MISMATCH / [...]")

    def test_equal_reasons_share_a_note(self):
        cells = {("a", "one"): ("same", "x"), ("a", "two"): ("refused", "no"), ("b", "one"): ("refused", "no")}
        self.assertEqual(
            kinds.table(["one", "two"], ["a", "b"], cells).splitlines(),
            ["| export | one | two |", "|---|---|---|", "| a | same | refused (1) |",
             "| b | refused (1) | not tried (2) |", "", "1. no", "2. not reached"])


if __name__ == "__main__":
    unittest.main()
