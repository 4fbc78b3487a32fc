# `make help` lists the targets. The first one that needs Python sets up .venv.

VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMP   := $(VENV)/.ready
OUT     ?= model
MODEL   ?= model
RUN     := $(PYTHON) tools/run.py $(if $(MINE),answers/package,build) simple_llm
# What people write in these is text, whatever quotes or dollars are in it: the shell reads
# it from its environment, and neither Make nor the shell looks inside.
override OUT    := $(value OUT)
override MODEL  := $(value MODEL)
override PROMPT := $(value PROMPT)
export OUT MODEL PROMPT
# One BLAS thread for each process: what is measured, and what is sealed in the book, was so.
OPENBLAS_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS
# What other programs set for Python, and would put their modules in place of ours.
unexport PYTHONPATH PYTHONHOME PYTHONPLATLIBDIR PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONINSPECT PYTHONWARNINGS
TORCH   := .venv-torch$(if $(TRANSFORMERS),-$(TRANSFORMERS))
WEAVER  := .venv-book
OPENAI  := .venv-openai

.DEFAULT_GOAL := help
.PHONY: help tangle train test torture generate chat assistant inspect info eval tokenize tiny first shell \
	test-hostile bench bench-torch bench-bpe parity captions book-check refresh refresh-all clean

help:  ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' \
		$(MAKEFILE_LIST)
	@echo
	@echo '  make train CORPUS=path/to/text.txt      train on your own text instead'
	@echo "  make train CORPUS=\"'my text.txt' more.txt\"  several, and names with spaces"
	@echo '  make train ARGS="--epochs 20 --seed 1"  any option of simple_llm train'
	@echo '  make generate PROMPT="..." MODEL=model  continue a prompt'

# The stamp is written last: a set-up that was interrupted is done again.
$(STAMP): requirements.txt setup.sh
	@echo 'setting up $(VENV) ...' >&2
	@sh setup.sh $(VENV)
	@touch $@

# What draws in a page goes into the package, too, for those who install it.
DRAWS := tools/play.js tools/live.js tools/live.css tools/live.html

tangle: $(STAMP)  ## extract the program from simple_llm.md into build/
	@$(PYTHON) tangle.py
	@cp $(DRAWS) build/simple_llm/live/

# The same before everything else, without a word unless something is wrong.
.PHONY: build
build: $(STAMP)
	@$(PYTHON) tangle.py >/dev/null
	@cp $(DRAWS) build/simple_llm/live/
	@test -z '$(MINE)' -o -d answers/package || { \
		echo 'MINE=1: none of your chunks has passed yet; see make exercise' >&2; exit 1; }

train: build  ## train on the small world (or CORPUS=...), then let it answer
	@$(RUN) train --out="$$OUT" $(if $(CORPUS),--corpus $(CORPUS)) $(ARGS)

generate: build  ## continue PROMPT="..." with the trained model
	@OPENBLAS_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) \
		$(RUN) generate --model="$$MODEL" --prompt="$$PROMPT" $(ARGS)

chat: build  ## tell the trained model a story, and ask; MODEL=smollm2: chat with a real one
	@OPENBLAS_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) \
		$(RUN) chat --model="$$MODEL" $(ARGS)

assistant: build  ## pretrain, instruct and reward an assistant, then MODEL=assistant
	@$(RUN) assistant $(ARGS)

.PHONY: serve test-openai
serve: build  ## a chat page, and the interface that chat programs speak, for MODEL (ARGS="--port 8080")
	@OPENBLAS_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) \
		$(RUN) serve --model="$$MODEL" $(ARGS)

# A client that nobody here wrote, in an environment apart.
$(OPENAI)/.ready: requirements-openai.txt setup.sh
	@sh setup.sh $(OPENAI) requirements-openai.txt
	@touch $@

test-openai: build $(OPENAI)/.ready  ## let the package openai talk with a served model (installs it)
	@$(PYTHON) tools/run.py build pytest -q tests/test_serve.py -k openai

inspect: build  ## write inspect.html: a page in which the model reads PROMPT="..."
	@$(RUN) inspect --model="$$MODEL" $(ARGS) -- "$$PROMPT"

info: build  ## what is in the model directory MODEL
	@$(RUN) info -- "$$MODEL"

eval: build  ## measure the trained model on held-out text
	@$(RUN) eval --model="$$MODEL" $(if $(CORPUS),--corpus $(CORPUS)) $(ARGS)

tokenize: build  ## show how PROMPT="..." is cut into tokens
	@$(RUN) tokenize --model="$$MODEL" $(ARGS) $(if $(PROMPT),-- "$$PROMPT")

tiny: build  ## run the one-page model of chapter 1
	@$(RUN).tiny

first: build  ## chapter 9's loop of ten lines: train for a minute, then ask
	@$(RUN).first $(ARGS)

bench: build  ## how fast is it on this machine? (ARGS=--json for machines)
	@$(PYTHON) tools/bench.py $(ARGS)

# PyTorch and transformers are wanted for comparisons alone, in an environment apart.
$(TORCH)/.ready: requirements-torch.txt setup.sh
	@sed '$(if $(TRANSFORMERS),s/^transformers==.*/transformers==$(TRANSFORMERS)/)' $< >$(TORCH).txt
	@sh setup.sh $(TORCH) $(TORCH).txt
	@touch $@

bench-torch: build $(TORCH)/.ready  ## the same beside PyTorch and transformers (installs them)
	@$(TORCH)/bin/python tools/bench_torch.py $(if $(TEXT),text $(TEXT))

bench-bpe: build $(TORCH)/.ready  ## time byte-pair training beside others (MINBPE=a copy of minbpe)
	@MINBPE='$(MINBPE)' $(TORCH)/bin/python tools/bench_bpe.py $(ARGS)

parity: build $(TORCH)/.ready  ## our directories in transformers, and theirs here (TRANSFORMERS=5.23.0: with that one; MODEL=smollm2: a real model)
	@$(TORCH)/bin/python tools/parity$(if $(filter smollm2,$(MODEL)),_chat).py

.PHONY: book chapter
# What weaving the page needs, in an environment apart, too.
$(WEAVER)/.ready: requirements-book.txt setup.sh
	@sh setup.sh $(WEAVER) requirements-book.txt
	@touch $@

book: build $(WEAVER)/.ready  ## weave the book into one page, build/book/index.html
	@$(WEAVER)/bin/python tools/weave.py simple_llm.md build/book/index.html

chapter: build  ## the program as chapter N=5 leaves it, in build/chapters/5 (STARTER=1: its exercises to be written)
	@$(PYTHON) tools/chapter.py $(if $(STARTER),--starter) $(N) $(DIRECTORY)

shell: build  ## a Python session that can import simple_llm
	@$(PYTHON) -i -c 'import sys; sys.path[0] = "build"; import simple_llm, numpy as np; from simple_llm.model import *'

test: build  ## check every gradient, and everything else
	@$(PYTHON) tools/run.py build pytest -q tests $(ARGS)

# The page in a real browser: Node, a Chromium, and what tools/page/package.json names.
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome))
PAGE     := tools/page/node_modules
.PHONY: test-page
$(PAGE)/.ready: tools/page/package.json
	@cd tools/page && npm install --silent --no-package-lock --no-audit --no-fund
	@touch $@

test-page:  ## use every widget of the page in a real browser, if Chromium and Node are here
	@if [ -z '$(CHROMIUM)' ] || ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
		echo 'test-page: passed over: it needs node, npm and a chromium, and one of them is missing'; \
	else $(MAKE) -s book $(PAGE)/.ready && $(MAKE) -s inspect MODEL=tests/trained \
		PROMPT='anna took the key . what about anna ? the' ARGS='--out build/book/inspect.html' && \
		node tools/page/test.mjs '$(CHROMIUM)' build/book $(ARGS); fi

test-hostile: build  ## a few commands where locale, variables, paths and line ends are strange
	@sh tools/hostile.sh

# Exercises that rewrite a chunk: the answers lie in answers/, which git ignores.
EXERCISES := $(PYTHON) tools/run.py build exercises
.PHONY: exercise grade hint solution
exercise: build  ## begin EX=softmax, a chunk to be rewritten; without EX, list them all
	@$(EXERCISES) $(if $(EX),exercise '$(EX)') $(ARGS)

grade: build  ## is your EX=... right? if not, what is wrong
	@$(EXERCISES) $(if $(EX),grade '$(EX)') $(ARGS)

hint: build  ## a hint for EX=..., one more each time (or N=2)
	@$(EXERCISES) $(if $(EX),hint '$(EX)' $(N))

solution: build  ## the book's own chunk for EX=...
	@$(EXERCISES) $(if $(EX),solution '$(EX)')

torture: build  ## kill a training a hundred times, and compare the bytes at the end (minutes)
	@$(PYTHON) tools/torture.py $(ARGS)

captions: $(STAMP)  ## renew the captions above the chunks of the book, and its index
	@$(PYTHON) tangle.py captions
	@$(PYTHON) tools/index.py

book-check: build  ## is everything that the book shows still true? its rules, its figures
	@$(PYTHON) tangle.py check
	@$(PYTHON) tools/index.py check
	@$(PYTHON) tools/lint.py
	@$(PYTHON) tools/book.py check

refresh: build  ## renew the outputs of sessions and quick commands in the book
	@$(PYTHON) tools/book.py refresh
	@$(PYTHON) tangle.py captions
	@$(PYTHON) tools/index.py

refresh-all: build  ## renew the long runs in the book, too, and its figures (minutes)
	@$(PYTHON) tools/book.py refresh all
	@cp model/loss.svg figures/loss.svg
	@cp model/config.json model/model.safetensors model/tokenizer*.json tests/trained/
	@$(PYTHON) tools/book.py refresh
	@$(PYTHON) tools/bench.py figures figures
	@$(PYTHON) tools/live_data.py
	@$(PYTHON) tools/book.py seal
	@$(PYTHON) tangle.py captions
	@$(PYTHON) tools/index.py

clean:  ## remove what was built, but no model
	@rm -rf $(VENV) $(TORCH) $(WEAVER) $(OPENAI) $(PAGE) .pytest_cache tests/__pycache__ tools/__pycache__ __pycache__
	@find build -mindepth 1 ! -name .gitignore -delete
