from portrait360.apps.dataset import make_dataset as make_dataset
from portrait360.apps.evaluate import evaluate as evaluate
from portrait360.apps.pose import estimate_pose as estimate_pose
from portrait360.apps.pose_estimate import PoseEstimate as PoseEstimate
from portrait360.apps.train import train as train
from portrait360.errors import AssetError as AssetError
from portrait360.errors import CheckpointError as CheckpointError
from portrait360.errors import DatasetError as DatasetError
from portrait360.errors import DivergenceError as DivergenceError
from portrait360.errors import InputError as InputError
from portrait360.errors import Portrait360Error as Portrait360Error
from portrait360.portrait.camera import Camera as Camera
from portrait360.portrait.model import PortraitModel as PortraitModel
from portrait360.portrait.portrait import Portrait as Portrait
from portrait360.portrait.solid import PortraitMesh as PortraitMesh
from portrait360.types import RenderOutput as RenderOutput

__version__: str
__all__: list[str]
