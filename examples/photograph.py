"""Write scikit-image's photograph of an astronaut (NASA, public domain): photograph.py OUT.png"""

import sys
from pathlib import Path

from skimage import data, io

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, data.astronaut())
    print(path)
