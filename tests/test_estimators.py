"MetaKDClassifier and MetaKDRegressor are scikit-learn estimators, match by name, and come back from their folder."

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from metakd import MetaKDClassifier, MetakdError, MetaKDRegressor, MetaKDSurvival
from metakd.data.tables import align
from metakd.estimators import hold_out, load, save
from metakd.methods.registry import methods

pytestmark = pytest.mark.usefixtures("one_thread")
COPIES = {
    "check_sample_weight_equivalence_on_dense_data": "a copy of a person changes who validates and the order of batches"
}


@parametrize_with_checks(
    [MetaKDClassifier("NoKD", epochs=10), MetaKDRegressor("NoKD", epochs=20)], expected_failed_checks=lambda e: COPIES
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def people(n: int = 240, seed: int = 0) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    "Two modalities of equal width, of which each says half of the label; each third person lacks one of them."
    rng, who = np.random.default_rng(seed), pd.Index([f"P{k}" for k in range(n)])
    y = pd.Series(rng.choice(["ill", "well"], n), who)
    sign = np.where(y == "ill", 1.0, -1.0)
    blood = pd.DataFrame(rng.normal(size=(n, 3)), who, ["iron", "zinc", "salt"])
    memory = pd.DataFrame(rng.normal(size=(n, 3)), who, ["words", "faces", "time"])
    blood["iron"] += 2 * sign
    memory["time"] -= 2 * sign
    return {"blood": blood.drop(who[::3]), "memory": memory.drop(who[1::3])}, y


@pytest.fixture(scope="module")
def fitted():
    tables, y = people()
    return MetaKDClassifier(epochs=30).fit(tables, y), tables, y


def test_modalities_and_columns_are_matched_by_name(fitted):
    model, tables, y = fitted
    assert model.score(tables, y) > 0.9 and set(model.importance_) == {"blood", "memory"}
    p = model.predict_proba(tables)
    assert list(p.columns) == ["ill", "well"] and np.allclose(p.sum(axis=1), 1)
    turned = {m: tables[m][tables[m].columns[::-1]].assign(more=1.0) for m in ("memory", "blood")}
    assert np.allclose(model.predict_proba(turned).loc[p.index], p, atol=1e-12)
    with pytest.raises(MetakdError, match="'blood' has no column 'iron'"):
        model.predict({"blood": tables["memory"], "memory": tables["blood"]})
    alone = model.predict_proba({"blood": tables["blood"].loc[["P1"]]})
    assert np.allclose(alone, model.predict_proba({"blood": tables["blood"]}).loc[["P1"]], atol=1e-12)


def test_one_table_is_the_same_model(fitted):
    model, tables, y = fitted
    frame = pd.concat(tables.values(), axis=1).reindex(y.index)
    columns = {m: list(t) for m, t in tables.items()}
    one = MetaKDClassifier(modalities=columns, epochs=30).fit(frame, y)
    assert np.allclose(one.predict_proba(frame), model.predict_proba(tables).loc[y.index], atol=1e-9)
    assert one.predict(frame).shape == (240,) and one.score(frame, y) > 0.9
    with pytest.raises(MetakdError, match="one order"):
        one.fit(frame, y[::-1])


def test_scores_of_a_dictionary_go_by_identifier(fitted):
    model, tables, y = fitted
    answers = model.predict(tables)
    right = (answers == y.loc[answers.index]).astype(float)
    assert model.score(tables, y[::-1]) == pytest.approx(right.mean())
    weights = pd.Series(np.arange(240.0), y.index)
    assert model.score(tables, y, weights[::-1]) == pytest.approx((right * weights).sum() / weights.sum())
    with pytest.raises(MetakdError, match="a label for everybody"):
        model.score(tables, y[:5])


def test_it_comes_back_from_its_folder(fitted, tmp_path):
    model, tables, _ = fitted
    again = load(save(model, tmp_path / "kept"))
    assert again.predict_proba(tables).equals(model.predict_proba(tables)) and again.importance_ == model.importance_
    assert pickle.loads(pickle.dumps(model)).predict(tables).equals(model.predict(tables))
    about = json.loads((tmp_path / "kept" / "estimator.json").read_text())
    for change in (
        {"modalities": None},
        {"task": {"classes": [1]}},
        {"task": {"mean": 0}},
        {"format": 9},
        {"estimator": "os.system"},
        {"recipe": 1},
    ):
        (tmp_path / "kept" / "estimator.json").write_text(json.dumps(about | change))
        with pytest.raises(MetakdError):
            load(tmp_path / "kept")
    (tmp_path / "kept" / "estimator.json").write_text(json.dumps(about))
    with pytest.raises(MetakdError, match="plain values"):
        save(pickle.loads(pickle.dumps(model)).set_params(random_state=np.int64(0)), tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
    weights = tmp_path / "kept" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(MetakdError, match="cannot be read"):
        load(tmp_path / "kept")


def test_scikit_learns_tools(fitted):
    _, tables, y = fitted
    frame = pd.concat(tables.values(), axis=1).reindex(y.index)
    columns = {m: list(t) for m, t in tables.items()}
    model = MetaKDClassifier("NoKD", modalities=columns, epochs=3)
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(model, {"lr": [1e-6, 1e-2]}, cv=2).fit(frame, y)
    assert search.best_params_ == {"lr": 1e-2}
    pipe = make_pipeline(StandardScaler(), MetaKDClassifier("NoKD", epochs=20)).fit(frame, y)
    assert pipe.score(frame, y) > 0.8


def test_the_same_seed_is_the_same_model():
    tables, y = people()
    models = [MetaKDClassifier("NoKD", epochs=2, random_state=s).fit(tables, y) for s in (1, 1, 2)]
    a, b, c = (m.predict_proba(tables) for m in models)
    assert a.equals(b) and not a.equals(c)


def test_a_rare_class_is_found():
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 200 == 0
    x = rng.normal(size=(2000, 4)) + 2.5 * y[:, None]
    model, new = MetaKDClassifier("NoKD", epochs=30).fit(x, y), rng.normal(size=(400, 4))
    assert model.predict(new + 2.5).mean() > 0.8 and model.predict(new).mean() < 0.1


def test_rows_of_a_person_stay_together():
    tables, y = people()
    person = pd.Series([f"{int(i[1:]) // 4}" for i in y.index], y.index)
    samples = align(tables, y)
    training, validation = hold_out(samples, 0.2, 0, person[samples.ids].to_dict())
    assert training.size + validation.size == samples.batch.size
    blood = samples.batch.x["blood"]
    index = {tuple(row): person[i] for i, row in zip(samples.ids, blood.tolist())}
    both = [{index[tuple(row)] for row in part.x["blood"].tolist() if any(row)} for part in (training, validation)]
    assert both[0] and both[1] and not both[0] & both[1]
    visits = {i: f"{int(i[1:]) // 2}_visit{int(i[1:]) % 2}" for i in y.index}
    with pytest.raises(MetakdError, match="say who is one person with groups"):
        MetaKDClassifier().fit({"memory": tables["memory"].rename(visits)}, y[tables["memory"].index].rename(visits))
    with pytest.raises(MetakdError, match="say who is one person with groups"):
        MetaKDClassifier().fit(tables["memory"].rename(visits), y[tables["memory"].index].rename(visits))
    twice = tables["memory"].rename(lambda i: f"P{int(i[1:]) // 2}")
    samples = {}

    class Kept(MetaKDClassifier):
        def _recipe(self, spec, training, validation, seed):
            samples.update(training=training, validation=validation)
            return super()._recipe(spec, training, validation, seed)

    Kept("NoKD", epochs=1).fit(twice, y[tables["memory"].index].set_axis(twice.index))
    rows = {part: set(b.x["table"][:, 0].tolist()) for part, b in samples.items()}
    who = {part: {i for i, v in zip(twice.index, twice.words.astype("float32")) if v in rows[part]} for part in rows}
    assert who["validation"] and not who["training"] & who["validation"]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda t, y: (t, y.to_frame()), "labels are a DataFrame"),
        (lambda t, y: (t, y.where(y == "ill", "ill")), "hold one class"),
        (lambda t, y: ({"blood": t["blood"] * np.inf, "memory": t["memory"]}, y), "infinite"),
        (lambda t, y: ({"blood": t["blood"].astype(str) + "g", "memory": t["memory"]}, y), "not numeric"),
        (lambda t, y: (t, y.set_axis(range(len(y)))), "one a text and the other not"),
        (lambda t, y: ({}, y), "a table for each modality"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(spoil, said):
    with pytest.raises(MetakdError, match=said):
        MetaKDClassifier("NoKD", epochs=1).fit(*spoil(*people(60)))


def test_weights_and_groups_go_with_their_rows():
    "As arrays, or as Series in any order, after a table was cut and shuffled."
    tables, y = people(120)
    frame = pd.concat(tables.values(), axis=1).reindex(y.index).sample(frac=0.8, random_state=0)
    model = MetaKDClassifier("NoKD", modalities={m: list(t) for m, t in tables.items()}, epochs=2)
    weights = pd.Series(np.arange(120) % 3, y.index)
    given = [weights[frame.index], weights[frame.index].to_numpy(), weights]
    each = [clone(model).fit(frame, y[frame.index], sample_weight=w).predict_proba(frame) for w in given]
    assert np.array_equal(each[0], each[1]) and np.array_equal(each[0], each[2])
    assert not np.array_equal(each[0], clone(model).fit(frame, y[frame.index]).predict_proba(frame))
    numbered = frame.set_axis(range(6), axis=1)
    model = MetaKDClassifier("NoKD", modalities={"blood": [0, 1, 2], "memory": [3, 4, 5]}, epochs=2)
    model.fit(numbered, y[frame.index], groups=pd.Series(y.index, y.index))
    assert model.predict(numbered).shape == (96,)
    with pytest.raises(MetakdError, match="sample_weight has shape"):
        model.fit(numbered, y[frame.index], sample_weight=[1, 2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, spec in methods("classification").items() if spec.inputs == "any"])
def test_any_method_on_tables_comes_back_from_its_folder(name, tmp_path):
    tables, y = people(120)
    model = MetaKDClassifier(name, epochs=1).fit(tables, y)
    alone = {"memory": tables["memory"].head(4)}
    p = model.predict_proba(alone)
    assert np.isfinite(p).all(axis=None) and np.allclose(p.sum(axis=1), 1)
    if model.method_.state_dict():
        assert np.allclose(load(save(model, tmp_path / "kept")).predict_proba(alone), p, atol=1e-9)


def test_doubt_is_learned_from_people_who_validate(fitted):
    model, tables, y = fitted
    rng = np.random.default_rng(0)
    noise = pd.Series(
        np.where(rng.random(len(y)) < 0.3, "ill", y), y.index
    )  # three tenths of the sick labels are wrong
    doubtful = MetaKDClassifier(epochs=60, patience=None).fit(tables, noise)
    assert len(doubtful.temperatures_) == 2 and max(doubtful.temperatures_) > 1
    raw = MetaKDClassifier(epochs=60, patience=None, calibrate=False).fit(tables, noise)
    assert raw.temperatures_ == [1.0, 1.0] and raw.predict(tables).equals(doubtful.predict(tables))
    answers = doubtful.predict(tables, abstain=0.25)
    assert 0.1 < answers.isna().mean() < 0.5
    truth = y[answers.index]
    assert (answers == truth)[answers.notna()].mean() >= (doubtful.predict(tables) == truth).mean()


PEERS = ("LateFusion", "RandomForest", "LogisticRegression", "HistGradientBoosting", "XGBoost")


@pytest.mark.parametrize("method", [*PEERS, "Flex-MoE", "ShaSpec"])
def test_any_method_says_numbers_or_that_it_cannot(method):
    rng, who = np.random.default_rng(0), pd.Index([f"P{k}" for k in range(120)])
    a = pd.DataFrame(rng.normal(size=(120, 2)), who, ["u", "v"])
    b = pd.DataFrame(rng.normal(size=(120, 2)), who, ["w", "z"])[:80]
    tables, labels = {"a": a, "b": b}, (a.u > 0).map({True: "ill", False: "well"})
    assert MetaKDClassifier(method, epochs=8).fit(tables, labels).score(tables, labels) > 0.8
    assert MetaKDRegressor(method, epochs=8).fit(tables, a.u).score(tables, a.u) > 0.4
    times = np.exp(-a.u)
    if method in PEERS:
        with pytest.raises(MetakdError, match="for classes and numbers, not for Survival"):
            MetaKDSurvival(method, epochs=1).fit(tables, times)
        with pytest.raises(MetakdError, match="cannot be kept"):
            save(MetaKDClassifier(method).fit(tables, labels), "nowhere")
    else:
        assert MetaKDSurvival(method, epochs=8).fit(tables, times).score(tables, times) > 0.6
