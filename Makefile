# make demo | make test | make lab. The environment is made once, in .venv; PIP_ARGS is passed to pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test docs browser alone gpu lab tidy notebooks readme export constraints clean

install: $(VENV)/.installed

$(VENV)/.installed: constraints.txt settings.ini setup.py
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'metakd needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	git config --local include.path ../.gitconfig || true
	touch $@

demo: install  ## train and evaluate MetaKD, its ablation and its bounds, print a table, write demo/
	$(BIN)/metakd demo --out demo

test: export OMP_NUM_THREADS = 1  # two workers on two cores
test: install  ## every test: notebooks (nbdev_test, with nothing but the wheel), whole program, notebooks and package agree, notebooks are clean
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10 tests

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## the site, from the committed notebooks, into _docs/html; a link that leads nowhere is an error
	$(BIN)/python docs/prepare.py _docs/source
	$(BIN)/sphinx-build -q -W --keep-going -j auto -b html -c docs _docs/source _docs/html
	$(BIN)/python docs/prepare.py --download _docs/html

browser: docs  ## the site and JupyterLab in Chromium ($$CHROMIUM, or the one that is installed)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt playwright
	$(BIN)/python -m pytest -q docs/test_site.py

alone: install  ## every notebook with nothing but what its first cell installs, as it is opened on Colab
	$(BIN)/python tests/alone.py $(PIP_ARGS)

gpu: install  ## on a machine with a CUDA card: the tests that need one, their cells, and results/gpu.json
	$(BIN)/python -m pytest tests/test_cuda.py
	$(BIN)/nbdev_test --flags cuda --n_workers 0
	$(BIN)/metakd gpu --out results/gpu.json

lab: install  ## the chapters in JupyterLab
	$(BIN)/jupyter lab nbs

tidy: install  ## format, lint, and draw the links between chapters anew
	$(BIN)/python tests/links.py
	$(BIN)/nbdev_clean --fname nbs
	$(BIN)/ruff check --fix nbs tests setup.py
	$(BIN)/ruff format nbs tests setup.py

export: install  ## notebooks to package
	$(BIN)/nbdev_export

notebooks: install  ## execute the notebooks in place, for committing; those of the lab read the committed results
	for nb in $$(ls nbs/*.ipynb nbs/lab/*.ipynb | grep -v lab/segmentations); do TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.store_widget_state=False --inplace $$nb || exit 1; done
	$(BIN)/nbdev_clean

readme: install  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

constraints:  ## the tested set of versions anew
	$(BIN)/python -m pip install uv
	$(BIN)/python -c "from configparser import ConfigParser as C; c = C(delimiters=['=']); c.read('settings.ini'); c = c['DEFAULT']; print('\n'.join((' '.join(c[k + 'requirements'] for k in ('', 'audio_', 'scans_', 'tables_', 'logs_', 'dev_', 'docs_')) + ' playwright torch==2.13.0').split()))" > requirements.tmp
	(echo "# The versions that were tested together; regenerate with: make constraints"; $(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header requirements.tmp | grep -v -E '^(nvidia|cuda|triton)') > constraints.txt
	rm requirements.tmp

clean:
	rm -rf $(VENV) build dist *.egg-info demo _docs _alone
