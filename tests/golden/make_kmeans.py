"""Writes kmeans.json: the weighted errors that scikit-learn's KMeans leaves on rows of weights, with the settings of SqueezeLLM's
authors (quantization/nuq.py: one start from k-means++, at most 50 steps, random_state 0 for every row).

    pip install scikit-learn; python make_kmeans.py > kmeans.json

The rows are made by integer arithmetic and the four operations alone, so that tests/kernels/lookup_table_test.cpp makes the same.
"""
import json

import numpy
import sklearn
from sklearn.cluster import KMeans

ROWS, COLUMNS = 18, 1024
MASK = (1 << 64) - 1


class Random:  # SplitMix64
    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def make_row(random, kind):
    """Nearly normal, heavy-tailed, or heavy-tailed with zeros; sensitivities without and with tails."""
    w, sensitivity = [], []
    for _ in range(COLUMNS):
        x = random.uniform() + random.uniform() + random.uniform() + random.uniform() - 2.0
        u = random.uniform() + 0.01
        v = random.uniform() + 0.001
        w.append(0.02 * x / u if kind % 3 else 0.02 * x)
        s = u if kind < 2 else 1.0 / (v * v)
        sensitivity.append(0.0 if kind % 3 == 2 and u < 0.1 else s)
    return numpy.array(w, numpy.float32), numpy.array(sensitivity, numpy.float32)


def error_of(w, sensitivity, bits):
    model = KMeans(n_clusters=1 << bits, random_state=0, n_init=1, max_iter=50)
    model.fit(w.reshape(-1, 1), sample_weight=sensitivity)
    centres = numpy.sort(model.cluster_centers_.reshape(-1).astype(numpy.float64))
    values = w.astype(numpy.float64)
    nearest = centres[numpy.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return float((sensitivity.astype(numpy.float64) * (values - nearest) ** 2).sum())


random = Random(13)
rows = [make_row(random, row % 6) for row in range(ROWS)]
print(json.dumps({"scikit-learn": sklearn.__version__, "rows": ROWS, "columns": COLUMNS, "seed": 13,
                  "first": [float(rows[0][0][0]), float(rows[0][1][0])],
                  "last": [float(rows[-1][0][-1]), float(rows[-1][1][-1])],
                  "errors": {str(bits): [error_of(w, s, bits) for w, s in rows] for bits in (2, 3, 4)}}, indent=1))
