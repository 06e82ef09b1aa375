# Of this checkout, or of a release once there is an address to fetch it from:
#   spack repo add packaging/spack
#   spack dev-build --source-path . roundhouse@main
#   spack dev-build --source-path . roundhouse@main +cuda cuda_arch=90
from spack.package import *


class Roundhouse(CMakePackage, CudaPackage):
    """Quantizes the weights of large language models on clusters: RTN, GPTQ, AWQ, SignRound, SqueezeLLM and LLM-MQ."""

    license("Apache-2.0")

    # A checkout, by `spack dev-build` or `spack develop`: the sources are where they are.
    version("main")

    variant("tests", default=False, description="Builds tests and benchmarks")

    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("git", type="build")

    depends_on("mpi")
    depends_on("hdf5@1.10: ~mpi")
    depends_on("onednn@2.7: cpu_runtime=omp")
    depends_on("yaml-cpp")
    depends_on("cli11")
    depends_on("fmt")
    depends_on("nlohmann-json")
    depends_on("sentencepiece")
    depends_on("utf8proc")
    depends_on("pcre2")
    depends_on("kainjow-mustache")
    depends_on("xxhash")
    depends_on("openssl")
    depends_on("zlib-api")
    depends_on("zstd")
    depends_on("nccl", when="+cuda")
    depends_on("googletest +gmock", when="+tests")
    depends_on("python@3.9:", type="build", when="+tests")

    # Their standard libraries lack parts of C++20 that the sources use.
    conflicts("%gcc@:11")
    conflicts("%clang@:15")

    generator("ninja")

    def cmake_args(self):
        arguments = [
            self.define_from_variant("ROUNDHOUSE_CUDA", "cuda"),
            self.define_from_variant("ROUNDHOUSE_TESTS", "tests"),
            self.define("CMAKE_CXX_COMPILER_LAUNCHER", ""),
        ]
        if self.spec.satisfies("+cuda"):
            arguments.append(self.define("CMAKE_CUDA_ARCHITECTURES", self.spec.variants["cuda_arch"].value))
        return arguments

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_program(self):
        Executable(self.prefix.bin.roundhouse)("--version")
