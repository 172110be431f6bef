"""Tests the page at / in a real browser, and compares every number on it with the API."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from harness import Server

AXE = Path(os.environ["NODE_PACKAGES"], "node_modules/axe-core/axe.min.js")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
TEXTS = ["one text", "another text", "다른 글", "it's \"quoted\" \\ $HOME"]


def vectors(server, texts, model="multilingual"):
    return np.array([item["embedding"] for item in server.embed(texts, model=model)["data"]])


def embed(page, texts):
    """Enters the texts, and waits until the matrix shows exactly these."""
    page.get_by_label("Texts, one per line").fill("\n".join(texts))
    page.get_by_role("button", name="Embed", exact=True).click()
    last = json.dumps(texts[-1])
    page.wait_for_function(
        f"""() => document.querySelectorAll("#heat tbody tr").length === {len(texts)}
        && document.querySelector("#heat tbody tr:last-child th").title === {last}
        && document.querySelectorAll("#tokens > li").length === {len(texts)}"""
    )


def heat(page):
    rows = page.locator("#heat tbody tr").all()
    return np.array([[float(cell.get_attribute("data-value")) for cell in row.locator("td").all()] for row in rows])


def test_the_first_look_shows_the_example(open_page, server):
    page = open_page()
    texts = page.get_by_label("Texts, one per line").input_value().split("\n")
    v = vectors(server, texts)
    assert np.abs(heat(page) - v @ v.T).max() < 1e-5
    # Three topics in four languages each. Texts of the same topic are nearer to each other.
    own = np.kron(np.eye(3), np.ones((4, 4))) - np.eye(12)
    cosines = v @ v.T
    assert cosines[own == 1].mean() > 5 * abs(cosines[(own + np.eye(12)) == 0].mean())
    status = page.locator("#status").inner_text()
    tokens = server.embed(texts)["usage"]["prompt_tokens"]
    assert re.fullmatch(rf"12 texts · {tokens} tokens · {v.shape[1]} dimensions · [\d.]+ ms in the server", status)


def test_the_heat_map_has_the_apis_values(open_page, server):
    page = open_page()
    embed(page, TEXTS)
    v = vectors(server, TEXTS)
    cosines = v @ v.T
    assert np.abs(heat(page) - cosines).max() < 1e-5
    for i, row in enumerate(page.locator("#heat tbody tr").all()):
        assert row.get_by_role("rowheader").inner_text().split() == [str(i + 1), *TEXTS[i].split()]
        shown = [float(cell.inner_text()) for cell in row.get_by_role("cell").all()]
        assert np.abs(np.array(shown) - cosines[i]).max() <= 0.005 + 1e-6
    assert page.locator("#heat thead").get_by_role("columnheader").count() == len(TEXTS)
    # The nearest pair has the darkest background.
    cells = page.locator("#heat td[style]")
    light = cells.evaluate_all("all => all.map(td => getComputedStyle(td).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0))")
    values = cells.evaluate_all("all => all.map(td => +td.dataset.value)")
    assert np.argmin(light) in np.flatnonzero(np.isclose(values, max(values)))
    assert np.argmax(light) in np.flatnonzero(np.isclose(values, min(values)))


def test_another_model(open_page, server):
    page = open_page()
    assert page.locator("#model option").all_inner_texts() == ["multilingual", "org/tiny"]
    page.get_by_label("Model").select_option("org/tiny")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('16 dimensions')")
    texts = page.get_by_label("Texts, one per line").input_value().split("\n")
    v = vectors(server, texts, "org/tiny")
    page.wait_for_function(f"() => Math.abs(document.querySelectorAll('#heat td[data-value]')[1].dataset.value - {v[0] @ v[1]}) < 1e-5")
    assert np.abs(heat(page) - v @ v.T).max() < 1e-5


def test_the_map_is_numpys_pca(open_page, server):
    page = open_page()
    texts = page.get_by_label("Texts, one per line").input_value().split("\n")
    v = vectors(server, texts)
    _, s, axes = np.linalg.svd(v - v.mean(axis=0), full_matrices=False)
    expected = (v - v.mean(axis=0)) @ axes[:2].T
    dots = page.locator("#map circle").evaluate_all("all => all.map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')])")
    shown = np.array(dots)
    for axis in range(2):
        # The comparison ignores sign and scale, which the map may choose freely.
        assert abs(np.corrcoef(shown[:, axis], expected[:, axis])[0, 1]) > 0.9999
    share = (s**2 / (s**2).sum() * 100)[:2]
    across, up = map(int, re.findall(r"(\d+) %", page.locator("#map-hint").inner_text()))
    assert np.abs(share - (across, up)).max() <= 0.5 + 1e-6


def test_tokens_and_their_counts(open_page, server):
    page = open_page()
    embed(page, TEXTS)
    status, answer = server.request("POST", "/v1/tokenize", {"model": "multilingual", "input": TEXTS})
    assert status == 200
    for item, shown in zip(answer["data"], page.locator("#tokens > li").all(), strict=True):
        pieces = shown.locator("ol li")
        assert pieces.evaluate_all("all => all.map(li => li.textContent)") == item["pieces"]
        assert pieces.evaluate_all("all => all.map(li => li.title)") == [f"id {id}" for id in item["ids"]]
        assert shown.locator(".count").inner_text() == (f"{item['count']} tokens" if item["count"] != 1 else "1 token")
        # The number of the text and the number of tokens do not run together.
        assert shown.locator("p").inner_text() == f"#{item['index'] + 1} · {shown.locator('.count').inner_text()}"


def shown_id(token):
    """Returns the text that the style sheet adds after a token."""
    return token.evaluate("li => getComputedStyle(li, '::after').content").strip('"')


def test_a_tap_shows_a_tokens_id(open_page):
    page = open_page(**PHONE)
    token, other = page.locator("#tokens ol li").nth(1), page.locator("#tokens ol li").nth(2)
    assert shown_id(token) == "none"
    token.tap()
    assert f"id {shown_id(token)}" == token.get_attribute("title") and shown_id(other) == "none"
    page.get_by_role("button", name="Show ids").tap()
    assert f"id {shown_id(other)}" == other.get_attribute("title")
    page.get_by_role("button", name="Show ids").tap()
    assert shown_id(other) == "none"


def test_without_tokenize_the_page_says_so(open_page, server):
    page = open_page()
    refusal = {"error": {"message": "Invalid URL", "type": "invalid_request_error", "param": None, "code": "unknown_url"}}
    page.route("**/v1/tokenize", lambda route: route.fulfill(status=404, json=refusal))
    page.get_by_role("button", name="Embed", exact=True).click()
    page.get_by_text("Not available: this server has no /v1/tokenize.").wait_for()
    assert page.locator("#tokens > li").count() == 0 and page.locator("#heat td[style]").count() == 132
    assert all("404" in complaint for complaint in page.complaints)
    page.complaints.clear()


def rerank(server, query, texts):
    body = json.dumps({"query": query, "documents": texts, "return_tokens": True, "model": "multilingual"}).encode()
    request = urllib.request.Request(f"{server.url}/v1/rerank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["results"]


def test_search_ranks_by_relevance_and_shades_the_tokens_that_match(open_page, server):
    page = open_page()
    texts = [*TEXTS, "Der Hund schläft im Garten."]
    embed(page, texts)
    query = "a sleeping dog"
    page.get_by_label("Query").fill(query)
    page.get_by_role("button", name="Rank").click()
    results = rerank(server, query, texts)
    assert results[0]["index"] == len(texts) - 1
    page.wait_for_function(f"() => document.querySelector('#ranking .score').textContent === '{results[0]['relevance_score']:.3f}'")
    scores = np.array([result["relevance_score"] for result in results])
    assert page.locator("#ranking .text").evaluate_all("all => all.map(text => text.title)") == [texts[result["index"]] for result in results]
    shown = np.array([float(score) for score in page.locator("#ranking .score").all_inner_texts()])
    # The bars have the same scale for all texts, from 0 to 1.
    assert np.abs(bars(page) - np.clip(scores, 0, 1)).max() < 0.01
    assert np.abs(shown - scores).max() <= 0.0005 + 1e-6
    assert texts[-1] in page.locator("#search-status").inner_text()
    matched = page.locator("#ranking li:first-child .match").evaluate_all("all => all.map(it => [it.textContent, +it.dataset.share])")
    assert matched == [[token["text"], pytest.approx(token["share"])] for token in results[0]["tokens"] if token["share"] > 0]
    assert max(matched, key=lambda pair: pair[1])[0].strip() in ("Hund", "schläft", "schl")


def bars(page):
    """Returns the length of each bar as a share of its track."""
    share = "all => all.map(fill => fill.getBoundingClientRect().width / fill.parentElement.getBoundingClientRect().width)"
    return np.array(page.locator("#ranking .fill").evaluate_all(share))


def test_a_bar_is_as_long_as_its_score(open_page):
    page = open_page()
    scores = np.array([float(score) for score in page.locator("#ranking .score").all_inner_texts()])
    assert 0 <= scores.min() < scores.max() < 0.9
    assert np.abs(bars(page) - np.clip(scores, 0, 1)).max() < 0.01
    assert "share" in page.locator("#ranking-hint").inner_text()
    embed(page, ["something else"])
    page.wait_for_function("() => document.querySelectorAll('#ranking li').length === 1")
    assert bars(page)[0] == pytest.approx(float(page.locator("#ranking .score").inner_text()), abs=0.01)
    assert bars(page)[0] < 0.9, "the only text, but not a full bar"


def labels_of_the_map(page):
    """Returns for each text the center of its dot, and the box of its label and the line to it, if there are any."""
    return page.locator("#map g").evaluate_all("""groups => groups.map(group => {
      const box = (node) => node && (({ x, y, width, height }) => [x, y, x + width, y + height])(node.getBBox());
      const [dot, line] = [group.querySelector("circle"), group.querySelector("line")];
      return {
        text: group.querySelector("title").textContent,
        dot: ["cx", "cy"].map((name) => +dot.getAttribute(name)),
        label: box(group.querySelector("text")),
        written: group.querySelector("text")?.textContent,
        line: line && ["x1", "y1", "x2", "y2"].map((name) => +line.getAttribute(name)),
      };
    })""")


def to_box(box, point):
    return np.hypot(max(box[0] - point[0], 0, point[0] - box[2]), max(box[1] - point[1], 0, point[1] - box[3]))


@pytest.mark.parametrize("context", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("texts", ["example", "equal", "long"])
def test_each_label_of_the_map_stands_by_its_own_dot(open_page, context, texts):
    page = open_page(**context)
    if texts == "equal":
        embed(page, ["the same text"] * 4 + ["another text"] * 2 + ["third", "fourth"])
    if texts == "long":
        embed(page, [f"{word} and so on with many words, each with a meaning of its own" for word in ["cat", "dog", "bank", "rain", "Paris", "peace"]])
    shown = labels_of_the_map(page)
    dots = [np.array(each["dot"]) for each in shown]
    # No dot hides another one.
    assert min(np.hypot(*(a - b)) for i, a in enumerate(dots) for b in dots[:i]) > 5
    for i, each in enumerate(shown):
        number, text = each["text"].split(": ", 1)
        assert each["label"], f"{text} has no label"
        written = each["written"].removeprefix(number)
        assert each["written"].startswith(number) and text.startswith(written.removesuffix("…"))
        distances = [to_box(each["label"], dot) for dot in dots]
        assert min(distances) > 4, f"{text} covers a dot"
        if line := each["line"]:
            assert np.hypot(*(dots[i] - line[:2])) < 6 and to_box(each["label"], line[2:]) < 4, f"the line of {text}"
        else:
            assert distances[i] == min(distances) < 12, f"{text} is nearer to another dot"
        for other in shown[:i]:
            a, b = each["label"], other["label"]
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{text} covers {other['text']}"


def is_empty(page):
    counts = page.evaluate("['#ranking li', '#heat tr', '#map svg', '#tokens li'].map((it) => document.querySelectorAll(it).length)")
    return counts == [0, 0, 0, 0] and not page.locator("#legend").is_visible()


def test_results_go_with_their_texts(open_page):
    page = open_page()
    assert not is_empty(page)
    page.get_by_label("Texts, one per line").fill("")
    page.get_by_text("Write a text or two.").wait_for()
    assert is_empty(page)
    embed(page, ["a", "b", "c"])
    page.get_by_label("Texts, one per line").evaluate("it => it.value = 'a\\n'.repeat(2049)")
    page.get_by_role("button", name="Embed", exact=True).click()
    page.get_by_role("alert").wait_for()
    assert is_empty(page)
    page.complaints.clear()
    embed(page, ["a", "b", "c"])
    assert page.get_by_role("alert").count() == 0 and page.locator("#map circle").count() == 3


@pytest.fixture(scope="session")
def server_with_keys(tmp_path_factory):
    config = tmp_path_factory.mktemp("keys") / "config.toml"
    config.write_text('[server]\napi_keys = ["sk-right"]\n')
    with Server(config=config) as server:
        yield server


def test_a_server_with_keys_asks_for_one(open_page, server_with_keys):
    page = open_page(server_with_keys.url, ready=False)
    alert = page.get_by_role("alert")
    alert.get_by_text("Enter your API key").wait_for()
    assert "Authorization" not in alert.inner_text() and "Bearer" not in alert.inner_text()
    key = page.get_by_label("Key, if the server asks for one")
    assert key.is_visible() and key.evaluate("it => it === document.activeElement")
    models = page.get_by_label("Model", exact=True)
    assert models.locator("option").all_inner_texts() == ["needs an API key"] and models.bounding_box()["width"] > 100
    assert is_empty(page)
    key.fill("sk-wrong")
    key.press("Enter")
    alert.get_by_text("does not accept this key").wait_for()
    key.fill("sk-right")
    key.press("Enter")
    page.wait_for_selector("#tokens ol li")
    assert alert.count() == 0 and not key.is_visible()
    assert "multilingual-e5-small-static-2" in models.locator("option").all_inner_texts()
    assert page.complaints and all("401" in complaint for complaint in page.complaints)
    page.complaints.clear()


def test_a_phone_reaches_every_column(open_page):
    page = open_page(**PHONE)
    card = page.locator("#heat").locator("..").bounding_box()
    for cell in page.locator("#heat tbody tr").first.locator("td").all():
        box = cell.bounding_box()
        assert card["x"] <= box["x"] and box["x"] + box["width"] <= card["x"] + card["width"] + 1
        assert cell.evaluate("td => td.scrollWidth <= td.clientWidth + 1"), "a number is cut"
    # A tap shows the texts, for which the rows have no space.
    texts = page.get_by_label("Texts, one per line").input_value().split("\n")
    cell = page.locator("#heat tbody tr").nth(2).locator("td").nth(6)
    cell.tap()
    pair = page.locator("#pair").inner_text()
    assert texts[2] in pair and texts[6] in pair and f"{float(cell.get_attribute('data-value')):.4f}" in pair
    # No token is cut off within its row or at the end of the list.
    tokens = page.locator("#tokens").locator("..")
    assert tokens.evaluate("it => it.scrollHeight <= it.clientHeight + 1 && it.scrollWidth <= it.clientWidth + 1")
    # The page says that there are more columns, and they can be scrolled to.
    embed(page, [f"text {i}" for i in range(30)])
    assert "sideways" in page.locator("#heat-hint").inner_text()
    last = page.locator("#heat tbody tr").first.locator("td").last
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    assert card["x"] <= box["x"] and box["x"] + box["width"] <= card["x"] + card["width"] + 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_typing_is_enough(open_page):
    page = open_page()
    page.get_by_label("Texts, one per line").fill("a\nb\nc")
    page.wait_for_function("() => document.querySelectorAll('#heat tbody tr').length === 3")


def test_few_texts_and_many(open_page):
    page = open_page()
    embed(page, ["alone"])
    assert page.locator("#heat tbody td").all_inner_texts() == ["1.00"]
    assert "needs three texts or more" in page.locator("#map-hint").inner_text()
    page.get_by_label("Texts, one per line").fill("\n".join(f"text {i}" for i in range(100)))
    page.get_by_role("button", name="Embed", exact=True).click()
    page.wait_for_function("() => document.querySelectorAll('#heat tbody tr').length === 64")
    assert "100 texts" in page.locator("#status").inner_text() and "the first 64 are drawn" in page.locator("#status").inner_text()
    page.get_by_label("Texts, one per line").fill("")
    page.get_by_text("Write a text or two.").wait_for()


def test_a_texts_markup_stays_text(open_page):
    page = open_page()
    texts = ["<img src=x onerror=alert(1)>", "<b>bold</b>", "&amp;"]
    embed(page, texts)
    assert page.locator("main img, main b").count() == 0
    assert [th.get_attribute("title") for th in page.locator("#heat tbody th").all()] == texts


def test_errors_are_shown_as_the_api_words_them(open_page, server):
    page = open_page()
    # The text is not typed, because that takes Chromium a second for every hundred lines.
    page.get_by_label("Texts, one per line").evaluate("it => it.value = 'a\\n'.repeat(2049)")
    page.get_by_role("button", name="Embed", exact=True).click()
    alert = page.get_by_role("alert")
    alert.get_by_text("The server answered 400").wait_for()
    _, body = server.request("POST", "/v1/embeddings", {"model": "multilingual", "input": ["a"] * 2049})
    shown = alert.inner_text()
    assert body["error"]["message"] in shown and f"param: {body['error']['param']}" in shown
    assert len(page.complaints) == 1 and "400" in page.complaints.pop()
    embed(page, ["a", "b"])
    assert alert.count() == 0


def test_a_server_that_is_gone(open_page, tmp_path):
    with Server() as other:
        page = open_page(other.url)
    page.get_by_role("button", name="Embed", exact=True).click()
    page.get_by_role("alert").get_by_text("The server cannot be reached").wait_for()
    assert all("ERR_CONNECTION" in complaint for complaint in page.complaints)
    page.complaints.clear()


def copied(page, name):
    page.get_by_role("button", name=name).click()
    page.get_by_text("Copied as").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == page.locator("#code").text_content()
    return text


def test_what_is_copied_runs(open_page, server, tmp_path):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    embed(page, TEXTS)
    expected = vectors(server, TEXTS)
    curl = subprocess.run(["bash", "-c", copied(page, "Copy as curl")], capture_output=True, check=True).stdout
    assert np.allclose([item["embedding"] for item in json.loads(curl)["data"]], expected)
    # The SDKs themselves are tested elsewhere. This test checks the arguments that the snippets pass to them.
    stub = "class OpenAI:\n def __init__(self, **a): print(a); self.embeddings = self\n def create(self, **a): print(a); raise SystemExit\n"
    (tmp_path / "openai.py").write_text(stub)
    (tmp_path / "snippet.py").write_text(copied(page, "Copy as Python"))
    printed = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    given, asked = printed.splitlines()
    assert given == str({"base_url": server.url + "/v1", "api_key": "unused"})
    assert asked == str({"model": "multilingual", "input": TEXTS})
    package = tmp_path / "node_modules/openai"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "exports": "./index.js"}')
    stub = "export default class { constructor(a) { console.log(JSON.stringify(a)); this.embeddings = { create: (a) => { console.log(JSON.stringify(a)); process.exit(); } }; } }"
    (package / "index.js").write_text(stub)
    (tmp_path / "snippet.mjs").write_text(copied(page, "Copy as JavaScript"))
    printed = subprocess.run(["node", "snippet.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    given, asked = map(json.loads, printed.splitlines())
    assert given == {"baseURL": server.url + "/v1", "apiKey": "unused"}
    assert asked == {"model": "multilingual", "input": TEXTS}


def test_a_key_is_sent_and_kept_out_of_the_code(open_page):
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.headers.get("authorization")))
    page.get_by_text("API key", exact=True).click()
    page.get_by_label("Key, if the server asks for one").fill("sk-secret")
    with page.expect_response("**/v1/tokenize"):
        page.keyboard.press("Tab")
    assert sent and set(sent) == {"Bearer sk-secret"}
    for name in ("Copy as curl", "Copy as Python", "Copy as JavaScript"):
        page.get_by_role("button", name=name).click()
        code = page.locator("#code").text_content()
        assert "sk-secret" not in code and "OPENAI_API_KEY" in code
    assert page.evaluate("[JSON.stringify(localStorage), sessionStorage.getItem('key')]") == ["{}", "sk-secret"]


def test_dark_mode_by_the_system_and_by_the_button(open_page):
    dark = "document.documentElement.hasAttribute('data-dark')"
    page = open_page(color_scheme="dark")
    assert page.evaluate(dark)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => !{dark}")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: dark" and page.evaluate(dark)
    page.reload()
    assert page.evaluate(dark), "remembered"


def test_by_keyboard_alone(open_page):
    page = open_page()
    focused = "() => document.activeElement.id || document.activeElement.textContent"
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
        style = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", reached[-1]
        if reached[-1] == "code":
            break
    expected = ["Skip to the results", "model", "API key", "API reference", "theme", "texts", "embed", "query", "Rank"]
    assert reached[: len(expected)] == expected
    assert reached[-4:] == ["Copy as curl", "Copy as Python", "Copy as JavaScript", "code"]
    page.get_by_label("Texts, one per line").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("typed\nby keys\nalone")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelectorAll('#heat tbody tr').length === 3")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("keys")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#ranking li').length === 3")


@pytest.mark.parametrize("context", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_overflows(open_page, context, scheme, request):
    page = open_page(color_scheme=scheme, bypass_csp=True, **context)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if directory := os.environ.get("SCREENSHOTS"):
        name = request.node.callspec.id
        page.screenshot(path=Path(directory, f"{name}.png"), full_page=True)


def test_nothing_but_this_server_is_asked_and_nothing_inline_runs(open_page, server):
    page = open_page(ready=False)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    response = page.reload()
    page.wait_for_selector("#tokens ol li")
    assert asked and all(url.startswith((server.url, "data:")) for url in asked)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }")
    assert page.evaluate("window.ran") is None
    assert len(page.complaints) == 1 and "Content Security Policy" in page.complaints.pop()


OPERATIONS = [
    "POST /v1/embeddings",
    "POST /openai/deployments/{id}/embeddings",
    "POST /v1/engines/{id}/embeddings",
    "POST /v1/rerank",
    "POST /v1/sparse-embeddings",
    "POST /embed_sparse",
    "POST /v2/rerank",
    "GET /v1/batches",
    "POST /v1/batches",
    "GET /v1/batches/{batch_id}",
    "POST /v1/batches/{batch_id}/cancel",
    "GET /v1/files",
    "POST /v1/files",
    "GET /v1/files/{file_id}",
    "DELETE /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "POST /v1/tokenize",
    "POST /v1/similarity",
    "POST /api/embed",
    "POST /api/embeddings",
    "POST /api/show",
    "GET /api/tags",
    "GET /api/version",
    "POST /embed",
    "GET /info",
    "POST /v1/embed",
    "POST /v2/embed",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]


def test_the_page_of_the_api_tries_it(open_page, server):
    page = open_page(server.url + "/docs", ready=False)
    groups = page.locator(".nav-bar-tag")
    groups.last.wait_for()
    assert groups.all_inner_texts() == ["Embeddings", "Retrieval", "Batches", "Models", "Tools", "Other Systems", "Operations"]
    listed = page.locator(".nav-bar-path").evaluate_all("all => all.map(it => it.textContent.trim().split(/\\s+/).join(' '))")
    assert [" ".join([line.split()[0].upper(), *line.split()[1:]]) for line in listed] == OPERATIONS
    operation = page.locator("#post-\\/v1\\/embeddings")
    sent = json.loads(operation.locator("textarea").first.input_value())
    assert sent == {"input": "hello", "model": "multilingual"}
    with page.expect_response("**/v1/embeddings") as answered:
        operation.get_by_role("button", name="TRY").click()
    assert answered.value.json()["data"][0]["embedding"] == vectors(server, ["hello"])[0].tolist()


def marked(page):
    return page.locator(".nav-bar .active").evaluate_all("all => all.map(it => it.id)")


def test_the_page_of_the_api_marks_what_is_read(open_page, server):
    page = open_page(server.url + "/docs", ready=False)
    page.locator("#link-overview.active").wait_for()
    assert marked(page) == ["link-overview"]
    for path in ("/v1/models", "/v1/tokenize"):
        method = "get" if path == "/v1/models" else "post"
        section = page.locator(f"[id='{method}-{path}']")
        section.evaluate("it => it.scrollIntoView({ block: 'start' })")
        page.locator(f"[id='link-{method}-{path}'].active").wait_for()
        assert marked(page) == [f"link-{method}-{path}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_api_on_a_phone(open_page, server, scheme):
    page = open_page(server.url + "/docs", ready=False, color_scheme=scheme, **PHONE)
    page.get_by_text("All operations").tap()
    links = page.locator("#operations li")
    assert [" ".join(text.split()) for text in links.all_inner_texts()] == OPERATIONS
    links.get_by_text("/v1/models/{id}").tap()
    page.wait_for_function("""() => {
      const top = document.querySelector("rapi-doc").shadowRoot.getElementById("get-/v1/models/-id-").getBoundingClientRect().top;
      return top > 0 && top < innerHeight / 2;
    }""")
    assert not page.locator("#operations ul").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # The colors are those of the playground.
    background = page.locator("rapi-doc").evaluate("it => getComputedStyle(it).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 32, 41)"}[scheme]
    page.get_by_role("link", name="Playground").tap()
    page.wait_for_selector("#tokens ol li")


def test_the_page_of_the_api_sends_a_key(open_page, server_with_keys):
    page = open_page(server_with_keys.url + "/docs", ready=False)
    bearer = page.locator("#auth tr", has_text="HTTP Bearer")
    bearer.locator("input").fill("sk-right")
    bearer.get_by_role("button", name="SET").click()
    operation = page.locator("#post-\\/v1\\/embeddings")
    with page.expect_response("**/v1/embeddings") as answered:
        operation.get_by_role("button", name="TRY").click()
    assert answered.value.status == 200 and len(answered.value.json()["data"][0]["embedding"]) == 384
    # A server without keys does not ask for a key.
    with Server() as other:
        page = open_page(other.url + "/docs", ready=False)
        page.locator(".nav-bar-tag").last.wait_for()
        assert page.locator("#auth").count() == 0
