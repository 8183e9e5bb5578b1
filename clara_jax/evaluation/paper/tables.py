"""Numbers of the CLaRa paper, arXiv 2511.18659, in percent as printed; paper.py reads them.

Table numbers are those of version 3 (February 2026). Version 2 (November 2025) prints the same
results, each in the table one later. The first line of a table names what a row is of and, behind
the bar, its numbers: each is four of them, of NaturalQuestions, HotpotQA, MuSiQue and 2Wiki, or
with commas as many for each of these. Figures 6 to 8 are pictures that could not be read.
"""

# Cover exact match after instruct from five documents, of the base from none and from their text.
# Tables 1 and 5.
COMPRESSOR = """
model rate | normal oracle
mistral_7b none 35.01 27.55 5.38 38.45
mistral_7b text 54.58 42.94 8.94 44.24 71.64 70.77 45.72 68.83
mistral_7b 4 57.05 45.09 10.34 46.94 76.50 73.81 46.26 70.48
mistral_7b 16 55.56 43.72 10.55 46.00 75.48 70.79 43.15 66.16
mistral_7b 32 54.64 43.52 10.55 46.58 73.77 69.51 38.31 64.54
mistral_7b 64 54.18 42.17 10.17 47.03 71.90 66.22 34.96 61.55
mistral_7b 128 53.36 41.37 10.26 46.40 69.96 62.09 30.86 59.08
mistral_7b 256 52.84 40.00 10.38 46.31 68.82 59.93 26.19 56.50
phi4_mini none 18.77 21.10 4.05 30.26
phi4_mini text 48.14 37.78 8.11 35.11 66.10 64.06 37.07 52.69
phi4_mini 4 53.31 42.36 8.73 45.22 73.67 72.41 40.13 64.22
phi4_mini 16 51.96 40.86 8.61 44.27 73.17 70.26 38.39 63.15
phi4_mini 32 49.30 38.62 7.70 43.71 69.90 65.32 31.77 58.52
phi4_mini 64 45.72 35.75 6.50 43.96 64.72 57.79 23.54 53.11
phi4_mini 128 43.09 33.92 6.87 43.70 60.44 51.52 19.28 50.29
phi4_mini 256 42.73 34.02 6.87 43.75 60.12 51.54 19.61 50.33
"""

# The same in ablations: other data of scp (Tables 3 and 19), no alignment loss (4 and 20), so many
# documents in scp (11), and the generator alone trained in instruct (12).
COMPRESSOR_ABLATIONS = """
model change rate | normal oracle
mistral_7b mix=none 32 53.03 40.63 9.68 46.64 70.01 61.13 29.00 57.43
mistral_7b mix=simple 32 53.84 42.20 10.26 46.68 72.66 66.41 35.29 61.22
mistral_7b mix=paraphrase 32 54.52 43.05 10.51 46.41 73.86 68.64 36.86 63.22
mistral_7b mix=questions 32 55.48 43.00 10.67 46.39 74.34 69.31 36.70 63.71
phi4_mini mix=none 32 48.10 37.65 7.61 44.68 65.54 60.32 27.31 56.39
phi4_mini mix=simple 32 48.56 38.91 8.19 43.70 68.70 64.60 30.41 57.46
phi4_mini mix=paraphrase 32 48.65 38.41 7.74 44.11 67.90 64.72 31.11 58.67
phi4_mini mix=questions 32 49.47 38.88 8.03 43.96 69.33 65.15 31.15 57.94
mistral_7b mse=without 32 54.25 43.11 9.85 45.84 74.65 69.05 37.32 62.98
mistral_7b mse=without 128 52.98 41.32 10.22 46.23 71.24 62.26 29.29 57.87
mistral_7b corpus=0.5M 32 53.38 41.40 10.30 46.67 70.33 62.47 29.16 57.97
mistral_7b corpus=1M 32 54.82 43.71 10.63 46.90 74.08 68.88 38.97 63.91
phi4_mini corpus=0.5M 32 48.82 38.53 7.78 43.57 68.31 64.41 29.25 58.22
phi4_mini corpus=1M 32 48.40 38.47 7.73 43.82 69.41 64.42 31.32 58.00
mistral_7b trained=generator 32 52.26 42.66 10.43 45.79 72.78 67.48 34.38 60.89
mistral_7b trained=generator 128 50.72 40.10 9.14 45.52 66.93 59.66 25.94 58.19
phi4_mini trained=generator 32 45.91 37.70 6.95 42.97 65.65 62.76 27.60 56.46
phi4_mini trained=generator 128 38.83 32.30 6.50 42.53 52.87 47.51 17.38 48.98
"""

# F1 and exact match after e2e, five of 20 candidates chosen, from scp or instruct. Tables 2 and 6.
JOINT = """
start model setting rate | f1,exact_match
scp mistral_7b normal 4 40.62 31.21 39.53 29.54 14.53 6.16 42.59 38.49
scp mistral_7b normal 16 41.75 32.24 44.37 33.72 15.36 6.99 43.47 39.50
scp mistral_7b normal 32 40.68 31.36 41.84 31.26 15.32 6.66 43.23 38.98
scp mistral_7b normal 64 41.58 31.38 41.62 31.12 14.78 6.16 42.64 38.40
scp mistral_7b normal 128 42.04 31.78 42.26 31.78 15.53 6.37 41.80 37.37
scp mistral_7b normal 256 42.90 32.58 41.32 30.44 15.44 6.41 41.96 37.60
scp mistral_7b oracle 4 77.80 70.52 77.66 64.83 41.59 30.33 73.20 69.14
scp mistral_7b oracle 16 73.81 65.74 69.57 56.76 31.15 21.18 65.90 61.31
scp mistral_7b oracle 32 72.03 63.65 70.91 57.07 33.40 22.22 66.32 61.12
scp mistral_7b oracle 64 68.18 59.56 67.64 53.22 28.43 17.42 62.53 57.02
scp mistral_7b oracle 128 68.66 59.25 66.51 52.30 28.44 16.67 64.82 58.97
scp mistral_7b oracle 256 66.85 57.17 63.43 49.08 27.44 16.92 62.96 57.35
scp phi4_mini normal 4 39.69 30.41 37.10 27.33 15.20 6.08 38.43 34.26
scp phi4_mini normal 16 31.93 23.38 37.21 27.22 14.30 4.84 40.03 35.62
scp phi4_mini normal 32 30.70 21.78 37.14 26.99 13.26 4.39 38.15 33.82
scp phi4_mini normal 64 28.88 19.91 34.98 25.07 13.31 4.55 37.74 33.57
scp phi4_mini normal 128 29.26 19.85 34.73 24.95 13.07 4.01 36.41 32.23
scp phi4_mini normal 256 29.92 20.53 34.10 24.62 13.07 4.22 35.98 31.61
scp phi4_mini oracle 4 61.07 52.15 59.82 46.99 25.87 15.76 56.84 52.12
scp phi4_mini oracle 16 65.09 55.96 57.87 45.26 21.09 11.25 55.75 50.41
scp phi4_mini oracle 32 62.35 52.07 51.06 38.33 20.98 10.92 50.68 45.41
scp phi4_mini oracle 64 58.51 47.08 55.47 41.62 23.89 12.99 53.90 48.26
scp phi4_mini oracle 128 56.13 44.52 52.68 38.49 20.74 9.85 49.97 44.11
scp phi4_mini oracle 256 54.58 43.24 51.62 37.77 21.45 9.89 48.46 42.63
instruct mistral_7b normal 4 48.21 38.16 45.93 35.12 17.49 8.11 47.18 43.11
instruct mistral_7b normal 16 50.89 41.02 47.62 36.67 18.01 8.44 44.66 40.48
instruct mistral_7b normal 32 49.72 39.88 45.73 34.85 16.83 7.82 42.57 38.41
instruct mistral_7b normal 64 50.91 41.07 45.68 34.74 16.76 7.65 40.34 35.91
instruct mistral_7b normal 128 51.41 41.27 44.63 33.88 15.75 7.03 40.55 36.12
instruct mistral_7b normal 256 50.57 40.39 43.02 32.26 16.02 6.99 40.10 35.77
instruct mistral_7b oracle 4 75.63 67.64 69.66 56.92 33.19 22.42 73.86 69.74
instruct mistral_7b oracle 16 71.54 63.29 71.17 57.54 30.77 20.56 60.37 55.73
instruct mistral_7b oracle 32 69.75 65.17 68.87 55.20 28.87 18.45 64.38 59.32
instruct mistral_7b oracle 64 68.17 59.04 66.64 52.87 27.30 16.96 60.98 55.59
instruct mistral_7b oracle 128 66.95 57.61 64.09 54.63 26.11 15.97 62.34 56.64
instruct mistral_7b oracle 256 65.60 55.65 61.79 47.74 27.67 17.05 59.40 53.75
instruct phi4_mini normal 4 41.86 31.96 39.44 29.32 15.70 5.59 37.63 33.40
instruct phi4_mini normal 16 42.17 32.61 42.77 32.00 15.84 6.08 36.69 32.47
instruct phi4_mini normal 32 39.14 29.45 42.59 31.47 15.55 5.71 41.47 36.68
instruct phi4_mini normal 64 36.91 27.09 38.90 28.02 14.08 4.88 39.52 34.98
instruct phi4_mini normal 128 36.26 26.34 36.39 26.44 14.70 5.42 37.14 32.85
instruct phi4_mini normal 256 37.58 27.48 35.84 25.73 13.66 4.92 36.26 32.11
instruct phi4_mini oracle 4 55.53 45.94 55.28 43.24 25.96 15.14 55.57 50.18
instruct phi4_mini oracle 16 58.62 48.90 56.47 43.45 23.07 12.49 56.85 51.57
instruct phi4_mini oracle 32 61.15 50.45 56.31 43.13 21.28 11.29 51.21 45.70
instruct phi4_mini oracle 64 57.63 46.62 52.39 38.94 22.38 11.63 48.11 42.83
instruct phi4_mini oracle 128 56.26 44.77 50.74 37.68 22.27 11.79 47.64 42.31
instruct phi4_mini oracle 256 54.55 43.09 50.00 36.78 20.92 11.01 46.85 41.66
"""

# The same in ablations, from scp, for HotpotQA and 2Wiki alone: the generator alone trained in e2e
# (Table 13), and a reasoner that starts at random (14).
JOINT_ABLATIONS = """
model change setting rate | f1,exact_match
mistral_7b trained=generator normal 32 38.40 28.24 39.93 35.80
mistral_7b trained=generator normal 128 38.26 28.26 41.34 37.29
phi4_mini trained=generator normal 32 32.91 23.51 35.99 32.14
phi4_mini trained=generator normal 128 31.42 21.89 35.54 31.32
mistral_7b trained=generator oracle 32 52.54 40.11 45.43 40.98
mistral_7b trained=generator oracle 128 51.60 39.06 44.64 40.22
phi4_mini trained=generator oracle 32 45.91 34.20 40.33 36.12
phi4_mini trained=generator oracle 128 39.46 28.06 37.05 32.57
mistral_7b reasoner=random normal 32 39.48 29.12 39.90 35.79
mistral_7b reasoner=random oracle 32 66.84 52.91 62.68 57.55
mistral_7b reasoner=random normal 128 37.25 27.38 38.55 34.69
mistral_7b reasoner=random oracle 128 62.06 48.37 60.63 54.87
"""

# Recall of 20 candidates, oracle, from scp or instruct; `sup` is `contrastive`. Table 7.
RECALL = """
start reasoner model rate | recall@1,recall@3,recall@5
scp sup mistral_7b 4 31.57 62.34 74.96 46.33 71.76 82.84 32.35 50.30 60.02 42.38 74.51 85.02
scp sup mistral_7b 16 30.66 61.05 73.30 44.00 69.66 80.45 29.44 45.07 54.63 40.03 65.48 77.27
scp sup mistral_7b 32 30.19 60.89 73.93 45.69 73.76 83.80 31.34 48.20 57.86 42.08 68.09 79.41
scp sup mistral_7b 64 29.88 60.38 73.53 45.92 74.35 84.46 31.32 46.91 55.93 42.13 68.26 79.52
scp sup mistral_7b 128 29.02 59.25 72.33 44.79 73.76 83.76 29.42 45.97 55.21 40.65 65.61 76.97
scp sup mistral_7b 256 27.54 56.67 70.00 44.50 73.89 83.81 29.13 46.33 56.04 39.99 64.87 76.22
scp e2e mistral_7b 4 32.62 63.71 76.38 47.07 90.90 96.21 30.45 59.99 72.46 34.37 68.08 79.13
scp e2e mistral_7b 16 28.45 58.97 71.88 42.01 77.80 87.85 22.57 44.34 58.83 32.04 67.12 82.50
scp e2e mistral_7b 32 28.06 59.68 73.21 43.84 81.32 90.32 28.22 56.19 70.19 32.36 64.96 81.01
scp e2e mistral_7b 64 27.69 59.11 72.79 43.17 79.35 89.54 24.96 49.13 62.37 32.84 63.45 79.40
scp e2e mistral_7b 128 28.17 59.64 73.30 40.70 73.60 84.70 20.74 41.29 54.86 31.80 63.41 79.48
scp e2e mistral_7b 256 25.33 55.62 69.79 39.68 71.38 83.34 19.58 38.57 51.33 30.81 56.56 72.59
scp sup phi4_mini 4 24.22 52.18 66.15 39.85 66.57 78.94 26.13 42.16 51.27 37.43 62.27 73.49
scp sup phi4_mini 16 28.16 57.82 71.13 42.18 67.66 79.18 28.48 43.75 53.55 39.96 55.62 66.99
scp sup phi4_mini 32 27.66 57.96 71.69 41.66 69.12 80.30 27.87 42.92 51.16 39.11 61.05 71.51
scp sup phi4_mini 64 27.40 57.76 72.01 41.40 70.39 81.34 28.11 44.27 53.46 38.27 61.67 73.13
scp sup phi4_mini 128 27.45 57.08 70.61 41.69 70.47 81.28 27.62 42.85 51.41 37.85 63.81 74.89
scp sup phi4_mini 256 25.67 54.20 67.85 40.82 67.54 78.62 27.03 41.45 49.93 36.78 60.32 71.13
scp e2e phi4_mini 4 8.58 28.21 44.61 18.38 42.90 60.01 10.56 26.81 40.08 17.05 38.03 52.63
scp e2e phi4_mini 16 20.94 48.89 64.34 23.90 49.17 64.38 15.07 30.79 42.49 21.16 46.83 64.10
scp e2e phi4_mini 32 27.63 58.37 72.37 28.64 55.48 70.00 16.43 34.31 46.55 30.30 58.89 75.98
scp e2e phi4_mini 64 29.17 60.08 73.83 36.25 65.67 78.44 16.38 33.36 46.23 27.74 53.69 69.63
scp e2e phi4_mini 128 29.63 60.54 74.02 37.94 63.96 75.93 17.67 34.90 46.39 30.79 58.53 74.64
scp e2e phi4_mini 256 27.50 57.90 71.58 37.10 63.30 75.23 17.67 34.13 44.98 31.79 60.53 76.90
instruct sup mistral_7b 4 28.33 58.52 71.96 42.40 65.93 77.40 27.87 45.47 55.39 39.90 62.02 74.35
instruct sup mistral_7b 16 28.20 57.24 69.57 42.24 67.91 79.33 26.80 42.33 50.68 39.22 59.77 70.38
instruct sup mistral_7b 32 27.56 56.70 69.58 44.88 71.02 81.54 29.29 43.86 52.22 42.21 55.47 66.56
instruct sup mistral_7b 64 25.70 54.11 66.80 44.94 73.32 84.24 29.02 44.21 53.28 42.09 54.68 66.03
instruct sup mistral_7b 128 25.05 53.12 65.73 45.14 74.56 85.18 28.11 43.18 52.40 42.27 58.47 69.94
instruct sup mistral_7b 256 25.15 52.61 65.27 44.60 73.95 85.18 28.69 44.32 53.25 41.89 52.64 63.77
instruct e2e mistral_7b 4 24.66 55.27 69.82 25.73 52.20 68.63 18.06 37.67 50.27 28.51 57.74 73.00
instruct e2e mistral_7b 16 23.66 52.43 66.79 35.85 67.69 81.13 18.95 37.21 50.71 12.85 32.17 47.90
instruct e2e mistral_7b 32 21.54 49.50 65.13 35.78 65.94 80.11 16.75 36.93 50.48 17.14 39.59 55.75
instruct e2e mistral_7b 64 20.77 49.52 64.71 33.65 63.93 78.47 16.13 34.13 46.41 17.40 38.10 51.61
instruct e2e mistral_7b 128 20.07 47.19 61.98 32.24 61.83 77.36 13.77 29.70 41.93 19.43 42.62 57.31
instruct e2e mistral_7b 256 19.39 46.91 62.66 29.71 56.66 71.58 15.84 31.92 43.57 20.12 42.26 56.29
instruct sup phi4_mini 4 22.38 49.29 62.81 39.91 66.12 77.59 26.11 41.34 50.39 37.79 61.89 72.96
instruct sup phi4_mini 16 23.85 52.04 65.97 40.92 65.97 77.75 26.47 42.17 51.07 38.52 53.51 64.79
instruct sup phi4_mini 32 23.72 52.09 65.43 41.53 67.81 79.44 27.41 41.40 50.23 39.79 51.25 60.99
instruct sup phi4_mini 64 22.34 49.46 63.40 40.93 68.95 80.57 26.17 42.17 51.14 38.47 49.72 58.88
instruct sup phi4_mini 128 22.80 50.64 63.30 40.47 67.99 80.36 27.05 41.82 50.21 38.95 50.31 59.78
instruct sup phi4_mini 256 22.27 49.31 62.15 39.76 65.61 78.39 26.54 41.06 48.39 37.68 49.09 56.86
instruct e2e phi4_mini 4 3.98 17.02 31.76 13.19 33.04 48.40 7.60 21.09 31.03 20.40 39.25 52.00
instruct e2e phi4_mini 16 8.15 25.82 40.84 18.00 41.31 57.10 7.82 18.24 28.19 21.16 40.80 51.96
instruct e2e phi4_mini 32 16.94 42.64 58.30 31.30 58.02 71.88 13.71 29.99 40.74 29.85 53.24 66.04
instruct e2e phi4_mini 64 17.63 44.29 59.33 32.09 59.98 74.35 15.93 32.42 44.22 29.77 56.59 71.59
instruct e2e phi4_mini 128 21.90 50.34 65.14 30.53 55.15 68.30 12.81 27.30 37.66 25.54 47.53 61.28
instruct e2e phi4_mini 256 19.32 45.89 60.39 31.18 56.05 69.80 12.24 26.19 37.40 27.54 51.71 64.10
none bm25 none 1 6.57 21.89 35.99 25.12 48.86 62.09 13.00 29.12 39.13 15.23 37.06 51.40
"""

# Paraphrases read back after scp: BERTScore, ROUGE-1, ROUGE-L, entities kept; documents of the
# corpus, then others. Table 16.
FIDELITY = """
model rate | seen unseen
mistral_7b 4 90.67 55.88 40.12 54.78 91.45 59.74 44.09 60.04
mistral_7b 16 90.63 56.12 40.33 54.78 91.43 59.97 44.10 59.88
mistral_7b 32 90.56 56.21 40.10 53.91 91.39 60.28 43.98 59.33
mistral_7b 64 90.28 55.54 38.86 51.45 91.24 60.09 43.42 58.26
mistral_7b 128 89.84 54.12 36.56 47.75 91.00 59.61 42.48 55.75
mistral_7b 256 89.19 51.75 33.12 42.12 90.51 57.89 39.59 52.38
phi4_mini 4 90.93 58.48 42.16 57.86 91.70 62.00 45.10 63.14
phi4_mini 16 90.77 58.20 41.49 56.28 91.66 62.20 45.31 62.22
phi4_mini 32 90.36 57.04 39.40 52.38 91.42 61.71 44.34 59.64
phi4_mini 64 89.53 54.27 35.40 45.28 90.84 60.20 41.72 54.47
phi4_mini 128 88.26 49.30 29.65 34.98 89.61 55.68 35.58 43.89
phi4_mini 256 88.13 49.05 29.10 34.27 89.52 55.27 35.22 43.61
"""

# Milliseconds on one H100 of 80 GB: compressing 20 documents, encoding the question, answering from
# five. Table 15.
EFFICIENCY = """
model rate | compress query answer
mistral_7b text 0 0 1290.57
mistral_7b 4 1092.29 99.69 532.73
mistral_7b 16 922.85 94.17 502.78
mistral_7b 32 904.22 92.16 514.75
mistral_7b 64 893.76 95.14 521.09
mistral_7b 128 876.99 95.24 518.41
mistral_7b 256 835.87 90.76 521.03
phi4_mini text 0 0 870.29
phi4_mini 4 674.78 94.34 342.05
phi4_mini 16 574.46 89.53 343.01
phi4_mini 32 561.17 84.35 358.04
phi4_mini 64 604.89 85.33 354.77
phi4_mini 128 594.55 91.73 360.23
phi4_mini 256 789.49 99.47 354.87
"""
