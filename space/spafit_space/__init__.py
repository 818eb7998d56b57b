"""The Space: nine tasks on one encoder, to look at and to call.

config.yaml --> config.py --> service.py --> page.py    what a person sees
                                  |    \--> api.py      what a program calls
                                  |
      tasks.py     a task in words, with examples
      results.py   result files, and the paper's figures
      strata.py    which layers an adapter touches
      full.py      a fully fine-tuned model, to compare with
      draw.py      answers, strata and tables as HTML
      blocks.py    Gradio without the words of visitors in its errors
"""
