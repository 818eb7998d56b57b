"""What a card asks to be cited, in BibTeX: the method's paper, and those of what it is compared with or trained on."""

from __future__ import annotations

from spafit_hf.card.facts import CardFacts

CITATIONS = {
    "spafit": """@misc{arora2024spafit,
  title         = {{SPAFIT}: Stratified Progressive Adaptation Fine-tuning for Pre-trained Large Language Models},
  author        = {Arora, S. and Wang, L.},
  year          = {2024},
  eprint        = {2405.00201},
  archivePrefix = {arXiv}
}""",
    "bitfit": """@inproceedings{benzaken2022bitfit,
  title     = {{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models},
  author    = {Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli},
  booktitle = {ACL},
  year      = {2022}
}""",
    "lora": """@inproceedings{hu2022lora,
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
               Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  year      = {2022}
}""",
    "series": """@inproceedings{houlsby2019adapters,
  title     = {Parameter-Efficient Transfer Learning for {NLP}},
  author    = {Houlsby, Neil and Giurgiu, Andrei and Jastrzebski, Stanislaw and Morrone, Bruna and
               de Laroussilhe, Quentin and Gesmundo, Andrea and Attariyan, Mona and Gelly, Sylvain},
  booktitle = {ICML},
  year      = {2019}
}""",
    "parallel": """@inproceedings{he2022unified,
  title     = {Towards a Unified View of Parameter-Efficient Transfer Learning},
  author    = {He, Junxian and Zhou, Chunting and Ma, Xuezhe and Berg-Kirkpatrick, Taylor and Neubig, Graham},
  booktitle = {ICLR},
  year      = {2022}
}""",
    "glue": """@inproceedings{wang2019glue,
  title     = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author    = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
               Bowman, Samuel R.},
  booktitle = {ICLR},
  year      = {2019}
}""",
}


def citation_intro(facts: CardFacts) -> str:
    own = facts.method.startswith("spafit") or facts.method == "custom"
    origin = "The method" if own else "The comparison of methods"
    return f"{origin} is Arora and Wang's; this repository and spafit-hf are not by them."


def citations(facts: CardFacts) -> str:
    lora = facts.kind == "adapter" and any(band.lora for band in facts.layers)
    other = "bitfit" if facts.method == "bitfit" else "lora" if lora else ""
    roles = [band.bottlenecks for band in facts.layers if band.bottlenecks]
    series = "series" if any("attention_output" in each for each in roles) else ""
    parallel = "parallel" if any("attention_output" not in each for each in roles) else ""
    cited = ["spafit", *filter(None, (other, series, parallel, "glue" if facts.data.glue else ""))]
    return "\n\n".join(CITATIONS[key] for key in cited)
