"""A reward model from a folder, made here: a small Llama with one label."""

from __future__ import annotations

import math

import pytest

from launcher.evaluate.judges.judge import Comparison
from launcher.evaluate.judges.reward_model import RewardModel

pytestmark = pytest.mark.slow  # imports torch and transformers

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"  # not a real model's
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("reward")
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    plain.train_from_iterator(["some text"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, num_labels=1,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight *= 30  # scores that differ by more than rounding
    model.save_pretrained(path)
    return path


COMPARISONS = [
    Comparison("Human: Hi\n\nAssistant:", "Hello, how are you?", "Go away"),
    Comparison("Human: Hi\n\nAssistant:", "Go away", "Hello, how are you?"),
    Comparison("Q", "the same", "the same"),
    Comparison("Q", "x", "a much longer answer"),
]


def test_preferences_are_sigmoids_of_differences_of_scores(folder):
    """A second computation: each text alone, without padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    found = RewardModel(folder).prefer(COMPARISONS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=0).eval()

    def score(prompt, answer):
        with torch.inference_mode():
            ids = tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
            return model(input_ids=ids).logits[0, 0].item()

    expected = [1 / (1 + math.exp(score(it.prompt, it.second) - score(it.prompt, it.first))) for it in COMPARISONS]
    assert found.values == pytest.approx(expected, abs=1e-4)
    assert found.values[0] + found.values[1] == pytest.approx(1) and found.values[2] == 0.5
    assert abs(found.values[0] - 0.5) > 0.01
    assert (found.facts["texts"], found.facts["cut"]) == (5, 0)


def test_long_texts_lose_their_beginning(folder):
    found = RewardModel(folder, longest=6).prefer(
        [Comparison("a long prompt of many tokens", "same end here", "same end here"), COMPARISONS[0]]
    )
    assert found.facts["cut"] == 3 and found.values[0] == 0.5


def test_its_own_chat_template_is_used(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    judge = RewardModel(folder)
    messages = [{"role": "user", "content": "Hi"}]
    comparison = Comparison("Human: Hi\n\nAssistant:", "Hello", "Bye", messages)
    assert judge._text(comparison, "Hello") == ("Human: Hi\n\nAssistant: Hello", False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    judge._tokenizer = tokenizer
    assert judge._text(comparison, "Hello") == ("<user>Hi<assistant>Hello", True)
    assert judge._text(Comparison("Q", "Hello", "Bye"), "Hello") == ("Q Hello", False)
    # A turn that ends with the token that most base models pad with: both answers would be read before the first one.
    tokenizer.chat_template = TEMPLATE.replace("{% endfor %}", "<end>{% endfor %}")
    assert abs(judge.prefer([comparison]).values[0] - 0.5) > 0.01
    assert RewardModel(folder).prefer(COMPARISONS[:1]).values == judge.prefer(COMPARISONS[:1]).values


def test_a_classifier_with_two_labels_is_refused(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 labels; a reward model has one"):
        RewardModel(tmp_path).prefer(COMPARISONS)
