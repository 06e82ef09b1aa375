# A header alone, in the place that Debian gives it.
from spack.package import *


class KainjowMustache(Package):
    """Mustache text templates for modern C++."""

    homepage = "https://github.com/kainjow/Mustache"
    git = "https://github.com/kainjow/Mustache.git"

    license("BSL-1.0")

    version("4.1", tag="v4.1")

    def install(self, spec, prefix):
        mkdirp(prefix.include.kainjow)
        install("mustache.hpp", prefix.include.kainjow)
